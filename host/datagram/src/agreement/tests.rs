//! Two ends that agree, without and with faults between them.

use proptest::prelude::*;

use super::*;
use crate::frame::{Flags, Kind, OVERHEAD_BYTES, PROBE_QUEUE, SealedFrame};
use crate::key::OpenError;

fn salt(seed: u8) -> Salt {
    Salt { name: [seed; SALT_NAME_BYTES], secret: Zeroizing::new([seed; 32]) }
}

fn terms(queues: u8, salts: &[u8]) -> Arc<Terms> {
    Arc::new(Terms { queues, has_aes: true, salts: salts.iter().copied().map(salt).collect() })
}

fn peer(name: &str) -> PeerId {
    PeerId(name.to_owned())
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A node's agreement with the other, and the keys that it would use.
struct End {
    agreement: Agreement,
    accepted: Vec<Arc<InboundKeys>>,
    outbound: Option<OutboundKeys>,
}

impl End {
    fn new(ours: &str, theirs: &str, receiver: u32, terms: Arc<Terms>) -> Self {
        let agreement = Agreement::new(peer(ours), peer(theirs), ReceiverIndex(receiver), terms);
        Self { agreement, accepted: Vec::new(), outbound: None }
    }

    fn take(&mut self, changed: KeysChanged) {
        self.accepted = changed.accepted;
        match changed.sealing {
            Sealing::Unchanged => {}
            Sealing::By(outbound) => self.outbound = Some(outbound),
            Sealing::Nothing => self.outbound = None,
        }
    }

    fn tick(&mut self, now: Duration) {
        if let Some(changed) = self.agreement.handle_tick(now) {
            self.take(changed);
        }
    }

    fn seal(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; OVERHEAD_BYTES + 4];
        let key = self.outbound.as_mut()?.packets.first_mut()?;
        key.seal(Kind::Packet, Flags::default(), &mut frame).unwrap();
        Some(frame)
    }

    fn open(&self, frame: &[u8]) -> Result<(), OpenError> {
        let mut frame = frame.to_vec();
        let frame = SealedFrame::new_checked(&mut frame).unwrap();
        let epoch = frame.header().epoch();
        let keys = self.accepted.iter().find(|keys| keys.epoch() == epoch).ok_or(OpenError::NoKey)?;
        keys.open(frame).map(|_| ())
    }
}

/// An initiator, a responder, and a source of bytes that never repeat.
struct Pair {
    a: End,
    b: End,
    secrets: u64,
}

impl Pair {
    fn new() -> Self {
        Self { a: End::new("a", "b", 11, terms(2, &[1])), b: End::new("b", "a", 22, terms(3, &[1])), secrets: 0 }
    }

    fn secret(&mut self) -> Zeroizing<[u8; 32]> {
        self.secrets += 1;
        let mut secret = Zeroizing::new([7; 32]);
        secret[..8].copy_from_slice(&self.secrets.to_be_bytes());
        secret
    }

    fn offer(&mut self, now: Duration) -> Vec<u8> {
        let secret = self.secret();
        self.a.agreement.offer(now, secret).unwrap()
    }

    fn answer(&mut self, now: Duration, offer: &[u8]) -> Result<Vec<u8>, AgreementError> {
        let secret = self.secret();
        let (accept, changed) = self.b.agreement.handle_offer(now, offer, secret)?;
        self.b.take(changed);
        Ok(accept)
    }

    fn conclude(&mut self, now: Duration, accept: &[u8]) -> Result<Vec<u8>, AgreementError> {
        let (confirm, changed) = self.a.agreement.handle_accept(now, accept)?;
        self.a.take(changed);
        Ok(confirm)
    }

    fn confirm(&mut self, now: Duration, confirm: &[u8]) -> Result<(), AgreementError> {
        let changed = self.b.agreement.handle_confirm(now, confirm)?;
        self.b.take(changed);
        Ok(())
    }

    fn agree(&mut self, now: Duration) {
        let offer = self.offer(now);
        let accept = self.answer(now, &offer).unwrap();
        let confirm = self.conclude(now, &accept).unwrap();
        self.confirm(now, &confirm).unwrap();
    }

    fn packets_pass(&mut self) -> [Option<Result<(), OpenError>>; 2] {
        let there = self.a.seal().map(|frame| self.b.open(&frame));
        let back = self.b.seal().map(|frame| self.a.open(&frame));
        [there, back]
    }
}

#[test]
fn two_nodes_get_keys_for_each_of_their_queues_and_for_probes() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    let outbound = [pair.a.outbound.take(), pair.b.outbound.take()].map(Option::unwrap);
    for (mut outbound, (to, queues)) in outbound.into_iter().zip([(&pair.b, 2), (&pair.a, 3)]) {
        assert_eq!(outbound.packets.len(), queues);
        for key in &mut outbound.packets {
            let mut frame = vec![0; 50];
            key.seal(Kind::Packet, Flags::default(), &mut frame).unwrap();
            assert_eq!(to.open(&frame), Ok(()));
        }
        let mut frame = vec![0; 50];
        outbound.probes.seal(Kind::Probe, Flags::default(), &mut frame).unwrap();
        assert_eq!(outbound.probes.lane().queue, PROBE_QUEUE);
        assert_eq!(to.open(&frame), Ok(()));
    }
}

#[test]
fn a_frame_does_not_open_at_its_own_sender_nor_under_another_queue() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    let frame = pair.a.seal().unwrap();
    assert_eq!(pair.a.open(&frame), Err(OpenError::NoKey), "another receiver index");
    let mut reflected = frame.clone();
    reflected[4..8].copy_from_slice(&11_u32.to_be_bytes());
    assert_eq!(pair.a.open(&reflected), Err(OpenError::Forged));
    let mut moved = frame;
    moved[3] = 1;
    assert_eq!(pair.b.open(&moved), Err(OpenError::Forged));
}

#[test]
fn the_node_with_the_lower_id_begins_and_only_when_keys_are_due() {
    let mut pair = Pair::new();
    assert!(pair.a.agreement.offer_due(at(0)) && !pair.b.agreement.offer_due(at(0)));
    let secret = pair.secret();
    assert_eq!(pair.b.agreement.offer(at(0), secret), Err(AgreementError::OutOfTurn));
    let offer = pair.offer(at(0));
    assert!(!pair.a.agreement.offer_due(at(1)));
    assert!(pair.a.agreement.offer_due(OFFER_LIMIT));
    let accept = pair.answer(at(1), &offer).unwrap();
    pair.conclude(at(1), &accept).unwrap();
    assert!(!pair.a.agreement.offer_due(at(600)));
    assert!(pair.a.agreement.offer_due(at(601)));
    assert_eq!(pair.a.agreement.agreed_at(), Some(at(1)));
}

#[test]
fn worn_keys_are_due_at_once() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    assert!(!pair.a.agreement.offer_due(at(1)));
    pair.a.outbound.as_ref().unwrap().packets[1].worn().store(true, Ordering::Relaxed);
    assert!(pair.a.agreement.offer_due(at(1)));
}

#[test]
fn failed_offers_are_made_again_after_growing_pauses_with_new_secrets() {
    let mut pair = Pair::new();
    let first = pair.offer(at(0));
    pair.a.agreement.handle_failure(at(0));
    assert!(!pair.a.agreement.offer_due(at(1)) && pair.a.agreement.offer_due(at(2)));
    let second = pair.offer(at(2));
    assert_ne!(first[1..33], second[1..33]);
    pair.a.agreement.handle_failure(at(2));
    assert!(!pair.a.agreement.offer_due(at(5)) && pair.a.agreement.offer_due(at(6)));
    for _ in 0..20 {
        pair.offer(at(6));
        pair.a.agreement.handle_failure(at(6));
    }
    assert!(pair.a.agreement.offer_due(at(6) + LONGEST_RETRY));
}

#[test]
fn frames_of_both_epochs_pass_while_keys_change_and_old_ones_end_a_minute_later() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    let (late, too_late) = (pair.a.seal().unwrap(), pair.a.seal().unwrap());
    pair.agree(at(600));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    pair.b.tick(at(601));
    assert_eq!(pair.b.open(&late), Ok(()));
    pair.b.tick(at(660));
    assert_eq!(pair.b.accepted.len(), 2);
    pair.b.tick(at(661));
    assert_eq!(pair.b.open(&too_late), Err(OpenError::NoKey));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
}

#[test]
fn old_keys_stay_while_the_peer_goes_on_with_them() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    // The accept is lost: the initiator never learns of the new keys.
    let offer = pair.offer(at(600));
    pair.answer(at(600), &offer).unwrap();
    for minute in 11..30 {
        pair.b.tick(at(minute * 60));
        assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    }
}

#[test]
fn the_first_frame_confirms_when_the_confirmation_is_lost() {
    let mut pair = Pair::new();
    let offer = pair.offer(at(0));
    let accept = pair.answer(at(0), &offer).unwrap();
    let confirm = pair.conclude(at(0), &accept).unwrap();
    assert_eq!(pair.packets_pass(), [Some(Ok(())), None]);
    pair.b.tick(at(1));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    // A confirmation that comes after all starts nothing anew.
    let sealed = pair.b.outbound.as_ref().unwrap().packets[0].sealed();
    assert_eq!(pair.confirm(at(2), &confirm), Ok(()));
    assert_eq!(pair.b.outbound.as_ref().unwrap().packets[0].sealed(), sealed);
}

#[test]
fn a_node_that_began_anew_gets_keys_that_have_nothing_of_the_old_ones() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    let recorded = pair.a.seal().unwrap();
    pair.b = End::new("b", "a", 23, terms(3, &[1]));
    let changed = pair.a.agreement.handle_restart(at(5));
    pair.a.take(changed);
    assert!(pair.a.outbound.is_none() && pair.a.accepted.is_empty());
    assert!(pair.a.agreement.offer_due(at(5)));
    pair.agree(at(5));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
    assert_eq!(pair.b.open(&recorded), Err(OpenError::NoKey));
    let mut renumbered = recorded;
    renumbered[4..8].copy_from_slice(&23_u32.to_be_bytes());
    assert_eq!(pair.b.open(&renumbered), Err(OpenError::Forged));
}

#[test]
fn every_changed_bit_of_a_message_ends_the_agreement() {
    let (mut flipped, mut accepted) = (0, 0);
    for bit in 0..8 * 57 {
        let mut pair = Pair::new();
        let mut offer = pair.offer(at(0));
        let Some(byte) = offer.get_mut(bit / 8) else { continue };
        *byte ^= 1 << (bit % 8);
        flipped += 1;
        // A changed offer is refused at once, or its accept does not fit what the initiator said.
        if let Ok(accept) = pair.answer(at(0), &offer) {
            accepted += 1;
            assert_eq!(pair.conclude(at(0), &accept).unwrap_err(), AgreementError::Code, "offer bit {bit}");
        }
    }
    assert!(flipped > 400 && accepted > 250, "{flipped} {accepted}");
    for bit in 0..8 * 72 {
        let mut pair = Pair::new();
        let offer = pair.offer(at(0));
        let mut accept = pair.answer(at(0), &offer).unwrap();
        accept[bit / 8] ^= 1 << (bit % 8);
        assert!(pair.conclude(at(0), &accept).is_err(), "accept bit {bit}");
        assert!(pair.a.outbound.is_none() && pair.a.accepted.is_empty());
    }
    for bit in 0..8 * 33 {
        let mut pair = Pair::new();
        let offer = pair.offer(at(0));
        let accept = pair.answer(at(0), &offer).unwrap();
        let mut confirm = pair.conclude(at(0), &accept).unwrap();
        confirm[bit / 8] ^= 1 << (bit % 8);
        assert!(pair.confirm(at(0), &confirm).is_err(), "confirm bit {bit}");
        assert!(pair.b.outbound.is_none());
    }
}

#[test]
fn an_ephemeral_key_that_everybody_can_break_is_refused() {
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let mut pair = Pair::new();
        let mut offer = pair.offer(at(0));
        offer[1..33].copy_from_slice(&point);
        assert_eq!(pair.answer(at(0), &offer), Err(AgreementError::WeakShare));
        let offer = pair.offer(at(2));
        let mut accept = pair.answer(at(2), &offer).unwrap();
        accept[1..33].copy_from_slice(&point);
        assert_eq!(pair.conclude(at(2), &accept), Err(AgreementError::WeakShare));
    }
}

#[test]
fn nodes_without_a_common_pre_shared_key_or_with_other_names_do_not_agree() {
    let mut pair = Pair::new();
    pair.b = End::new("b", "a", 22, terms(1, &[2]));
    let offer = pair.offer(at(0));
    assert_eq!(pair.answer(at(0), &offer), Err(AgreementError::UnknownSalt));
    // The same name for another secret: the codes tell.
    let lying =
        Terms { queues: 1, has_aes: true, salts: vec![Salt { name: [1; 16], secret: Zeroizing::new([9; 32]) }] };
    pair.b = End::new("b", "a", 22, Arc::new(lying));
    let accept = pair.answer(at(2), &offer).unwrap();
    assert_eq!(pair.conclude(at(2), &accept), Err(AgreementError::Code));
    // Somebody who passes b's messages on as c's.
    let mut pair = Pair::new();
    pair.b = End::new("c", "a", 22, terms(1, &[1]));
    let offer = pair.offer(at(0));
    let accept = pair.answer(at(0), &offer).unwrap();
    assert_eq!(pair.conclude(at(0), &accept), Err(AgreementError::Code));
}

#[test]
fn a_key_that_is_being_replaced_in_the_cluster_still_serves() {
    let mut pair = Pair::new();
    pair.a = End::new("a", "b", 11, terms(1, &[2, 1]));
    pair.b = End::new("b", "a", 22, terms(1, &[1, 2]));
    pair.agree(at(0));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
}

#[test]
fn messages_out_of_turn_change_nothing() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    let accept = pair.conclude(at(1), &[1; 72]);
    assert_eq!(accept, Err(AgreementError::OutOfTurn));
    assert_eq!(pair.confirm(at(1), &[1; 33]), Err(AgreementError::OutOfTurn));
    let offer = pair.offer(at(1));
    let secret = pair.secret();
    assert!(matches!(pair.a.agreement.handle_offer(at(1), &offer, secret), Err(AgreementError::OutOfTurn)));
    assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))]);
}

#[test]
fn offers_that_come_too_fast_are_refused_and_cost_no_memory() {
    let mut pair = Pair::new();
    pair.agree(at(0));
    let offer = pair.offer(at(1));
    assert!(pair.answer(at(1), &offer).is_ok());
    assert_eq!(pair.answer(at(1), &offer), Err(AgreementError::TooSoon));
    for second in 2..100 {
        pair.answer(at(second), &offer).unwrap();
        assert!(pair.b.accepted.len() <= MAX_ACCEPTED);
    }
}

/// What may happen between two ends.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An agreement that gets as far as that many messages.
    Agree(u8),
    Tick(u64),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![(1..=3_u8).prop_map(Event::Agree), (1..200_u64).prop_map(Event::Tick),]
}

proptest! {
    #[test]
    fn whatever_messages_get_lost_what_is_sealed_opens(events in prop::collection::vec(events(), 1..60)) {
        let (mut pair, mut now) = (Pair::new(), 0);
        pair.agree(at(now));
        for event in events {
            match event {
                Event::Agree(messages) => {
                    now += 2;
                    let offer = pair.offer(at(now));
                    let accept = pair.answer(at(now), &offer).unwrap();
                    if messages > 1 {
                        let confirm = pair.conclude(at(now), &accept).unwrap();
                        if messages > 2 {
                            pair.confirm(at(now), &confirm).unwrap();
                        }
                    } else {
                        pair.a.agreement.handle_failure(at(now));
                    }
                }
                Event::Tick(seconds) => {
                    now += seconds;
                    pair.a.tick(at(now));
                    pair.b.tick(at(now));
                }
            }
            prop_assert_eq!(pair.packets_pass(), [Some(Ok(())), Some(Ok(()))], "{:?}", event);
        }
        prop_assert!(pair.a.accepted.len() <= MAX_ACCEPTED && pair.b.accepted.len() <= MAX_ACCEPTED);
    }
}
