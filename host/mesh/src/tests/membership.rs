//! Questions, answers, news, and peers that go and come back.

use culvert_core::claim::{Claim, Standing};
use culvert_core::membership::{Endorsement, NodeRecord, PeerId};

use super::node::{Plan, TestNode, connect, free_port, wait_free};
use crate::*;

fn record_of(node: &TestNode, name: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        peer: node.id(),
        sequence: 1,
        addresses: Vec::new(),
        port: 20_006,
        blocks: Vec::new(),
        site_kind: Default::default(),
        zone: String::new(),
        labels: Default::default(),
    }
}

fn endorsement() -> Endorsement {
    Endorsement { name_decision: 1, blocks: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_and_records_are_told() {
    let (mut keeper, mut node) = (TestNode::start(Plan::default()), TestNode::start(Plan::default()));
    connect(&mut node, &mut keeper).await;
    let signed = SignedRecord::sign(&node.key(), &record_of(&node, "edge-1")).unwrap();
    let counted = signed.clone().countersign(&keeper.key(), &endorsement()).unwrap();

    let asking = node.mesh.clone();
    let keeper_id = keeper.id();
    let (answer, asked) = tokio::join!(asking.ask(&keeper_id, Ask::Register(signed.clone())), async {
        keeper.answer(Some(Answer::Registered(counted.clone()))).await
    });
    assert_eq!(asked, (node.id(), Ask::Register(signed)));
    assert_eq!(answer, Ok(Answer::Registered(counted.clone())));

    let block = "10.244.7.0/24".parse().unwrap();
    let claim = Claim { block, holder: "edge-1".into(), peer: node.id(), standing: Standing::Final };
    let ask = Ask::Claim { block, standing: Standing::Final };
    let (answer, _) = tokio::join!(asking.ask(&keeper_id, ask), keeper.answer(Some(Answer::Claimed(claim.clone()))));
    assert_eq!(answer, Ok(Answer::Claimed(claim)));

    keeper.mesh.tell(Audience::All, vec![counted.clone()]).await;
    let told = node
        .wait(|event| match event {
            MeshEvent::Told { from, records } => Some((from.clone(), records.clone())),
            _ => None,
        })
        .await;
    assert_eq!(told, (keeper.id(), vec![counted.clone()]));
    assert_eq!(told.1[0].verify_countersigned(&[keeper.id()]), Ok((record_of(&node, "edge-1"), endorsement())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_without_an_answer_ends_in_a_clear_error() {
    let (mut one, mut two) = (TestNode::start(Plan::default()), TestNode::start(Plan::default()));
    let two_id = two.id();
    let apart = one.mesh.ask(&two_id, Ask::Members).await;
    assert_eq!(apart, Err(AskError::NotConnected { peer: two_id.clone() }));
    let nobody = PeerId("nobody".into());
    assert_eq!(one.mesh.ask(&nobody, Ask::Members).await, Err(AskError::NotConnected { peer: nobody.clone() }));

    connect(&mut one, &mut two).await;
    let (dropped, _) = tokio::join!(one.mesh.ask(&two_id, Ask::Members), two.answer(None));
    let reason = "this node has no answer now; ask again later".to_owned();
    assert_eq!(dropped, Ok(Answer::Refused { reason }));

    let (cut, _folder) = tokio::join!(one.mesh.ask(&two_id, Ask::Members), async {
        two.wait(|event| matches!(event, MeshEvent::Asked { .. }).then_some(())).await;
        two.stop().await
    });
    // Dropping the question refuses it; ending the mesh breaks it off. Whichever comes first is told.
    match cut {
        Err(AskError::Interrupted { peer }) => assert_eq!(peer, two_id),
        Ok(Answer::Refused { .. }) => {}
        other => panic!("{other:?}"),
    }

    let mesh = one.mesh.clone();
    one.stop().await;
    assert_eq!(mesh.ask(&two_id, Ask::Members).await, Err(AskError::ShutDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_records_than_fit_a_message_all_arrive() {
    let (mut one, mut two) = (TestNode::start(Plan::default()), TestNode::start(Plan::default()));
    connect(&mut one, &mut two).await;
    let mut record = record_of(&one, "edge-1");
    record.zone = "z".repeat(10_000);
    let counted = SignedRecord::sign(&one.key(), &record).unwrap().countersign(&two.key(), &endorsement()).unwrap();
    one.mesh.tell(Audience::Peer(two.id()), vec![counted.clone(); 200]).await;
    let mut arrived = 0;
    two.wait(|event| {
        if let MeshEvent::Told { records, .. } = event {
            assert!(records.iter().all(|record| *record == counted));
            arrived += records.len();
        }
        (arrived == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stops_and_starts_again_is_connected_again() {
    let port = free_port();
    let mut one = TestNode::start(Plan::default());
    let mut two = TestNode::start(Plan { port, ..Plan::default() });
    connect(&mut one, &mut two).await;
    let two_id = two.id();
    let folder = two.stop().await;
    one.wait_disconnected(&two_id).await;
    let two = TestNode::start_in(Plan { port, ..Plan::default() }, folder);
    one.wait_connected(&two_id).await;
    assert_eq!(two.id(), two_id);
}

/// The peer's process dies without a word: no connection is closed, its sockets just vanish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_died_and_came_back_is_spoken_to_on_its_new_connection() {
    let port = free_port();
    let mut one = TestNode::start(Plan::default());
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut two = {
        let _inside = doomed.enter();
        TestNode::start(Plan { port, ..Plan::default() })
    };
    connect(&mut one, &mut two).await;
    doomed.shutdown_background();
    let (two_id, folder) = (two.id(), two.into_folder());
    // The old sockets are closed by the runtime's own threads.
    wait_free(port).await;
    let mut two = TestNode::start_in(Plan { port, ..Plan::default() }, folder);
    two.mesh.set_peers(vec![one.endpoint().await]).await;
    two.wait_connected(&one.id()).await;
    let (answer, _) = tokio::join!(
        async {
            loop {
                // Until the new connection is noticed the old one is asked, which breaks off.
                if let Ok(answer) = one.mesh.ask(&two_id, Ask::Claims).await {
                    return answer;
                }
            }
        },
        two.answer(Some(Answer::Released))
    );
    assert_eq!(answer, Answer::Released);
}
