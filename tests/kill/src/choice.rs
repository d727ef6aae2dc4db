//! Which points are tried, and in which order: the same for the same seed.
//!
//! First one point of every spot, so that a short run covers them all; then every other point; then all of them again,
//! each time with another aftermath.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::point::{Point, Spot};

/// A point and which of its scene's aftermaths follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The point.
    pub point: Point,
    /// Counted on from trial to trial of a point.
    pub turn: usize,
}

/// The trials in their order, without an end unless there are no points.
pub fn trials(points: &BTreeSet<Point>, seed: u64) -> impl Iterator<Item = Trial> + use<> {
    let mut ordered: Vec<Point> = points.iter().cloned().collect();
    ordered.sort_by_cached_key(|point| lot(seed, point));
    let mut firsts: BTreeMap<Spot, Point> = BTreeMap::new();
    for point in &ordered {
        // The first passing is the surest to be reached.
        let first = firsts.entry(point.spot.clone()).or_insert_with(|| point.clone());
        if point.ordinal < first.ordinal {
            *first = point.clone();
        }
    }
    let (first, rest): (Vec<Point>, Vec<Point>) =
        ordered.into_iter().partition(|point| firsts.get(&point.spot) == Some(point));
    let round: Vec<(usize, Point)> = first.into_iter().chain(rest).enumerate().collect();
    let rounds = if round.is_empty() { 0 } else { usize::MAX };
    (0..rounds).flat_map(move |number| {
        let trials = round.iter().map(move |(position, point)| Trial { point: point.clone(), turn: position + number });
        trials.collect::<Vec<_>>()
    })
}

/// A number that looks drawn by chance and is the same for the same seed.
fn lot(seed: u64, point: &Point) -> Vec<u8> {
    Sha256::digest(format!("{seed} {point}")).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::{Place, Victim};
    use crate::scene::Scene;

    fn points() -> BTreeSet<Point> {
        let place = |name: &str| Place::SystemCall(name.to_owned());
        let spot = |name: &str| Spot { scene: Scene::Add, victim: Victim::Shim, place: place(name) };
        let points = ["open", "close", "read"].into_iter().flat_map(|name| (1..=3).map(move |ordinal| (name, ordinal)));
        points.map(|(name, ordinal)| Point { spot: spot(name), ordinal }).collect()
    }

    #[test]
    fn every_spot_comes_first_then_every_point_then_all_again_with_another_aftermath() {
        let points = points();
        let trials: Vec<Trial> = trials(&points, 7).take(18).collect();
        let spots: BTreeSet<&Spot> = trials[..3].iter().map(|trial| &trial.point.spot).collect();
        assert_eq!(spots.len(), 3);
        assert!(trials[..3].iter().all(|trial| trial.point.ordinal == 1));
        assert_eq!(trials[..9].iter().map(|trial| trial.point.clone()).collect::<BTreeSet<_>>(), points);
        for (first, second) in trials[..9].iter().zip(&trials[9..]) {
            assert_eq!((&first.point, first.turn + 1), (&second.point, second.turn));
        }
    }

    #[test]
    fn the_order_follows_from_the_seed_alone() {
        let order = |seed| trials(&points(), seed).take(9).map(|trial| trial.point).collect::<Vec<_>>();
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_eq!(trials(&BTreeSet::new(), 1).count(), 0);
    }
}
