//! Tests of statements over many rows at once, by their number.

use super::*;

#[tokio::test]
async fn groups_of_any_size_are_stored_marked_and_recorded_whole() {
    let (_dir, store) = store().await;
    for count in [1, 2, 3, 63, 64, 65, 200] {
        let ids: Vec<String> = (0..count).map(|number| format!("{count}-{number}")).collect();
        store.insert(new_task(&ids[0])).await.unwrap();
        store.insert(new_task(&ids[count / 2])).await.unwrap_or_default();
        let placed = store.insert_batch(ids.iter().map(|id| new_task(id)).collect(), Atomicity::Each).await.unwrap();
        let taken = |place: usize| place == 0 || place == count / 2;
        let expected = |place| if taken(place) { Placed::Taken } else { Placed::Stored };
        assert_eq!(placed, (0..count).map(expected).collect::<Vec<_>>(), "of {count}");
        let published = ids.iter().map(|id| Published(id.clone(), 1)).collect();
        store.mark(published, HandedTo::Workers(NOW)).await.unwrap();
        assert_eq!(store.queued("default").await.unwrap() as usize, count);
        let started = ids.iter().map(|id| reply(id, report_of(State::Started), Some(0), Some(0))).collect();
        let retried = ids.iter().map(|id| reply(id, report_of(State::Retry), Some(0), Some(1))).collect();
        let ended = ids.iter().map(|id| reply(id, success("1"), Some(1), Some(0))).collect();
        for reports in [started, retried, ended] {
            assert_eq!(record(&store, reports).await.unwrap(), count as u64);
        }
        for id in &ids {
            assert_eq!(store.attempts(id, &Whose::Anybody).await.unwrap().unwrap().len(), 2);
        }
    }
    assert_eq!((store.outstanding(), store.counts().await.unwrap().success), (0, 398));
}
