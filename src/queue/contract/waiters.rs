//! Who is woken, and when.

use super::{Bench, channel, is_woken, offer, still_waits, waiter};

pub async fn an_offer_wakes_one_who_waits_for_its_channel(bench: &Bench) {
    let (first, second, elsewhere) = (waiter(1), waiter(2), waiter(3));
    bench.take(&["a"], 1, &first).await;
    bench.take(&["a"], 1, &second).await;
    bench.take(&["b"], 1, &elsewhere).await;
    bench.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&first).await && still_waits(&second) && still_waits(&elsewhere));
    assert_eq!(bench.take(&["a"], 1, &first).await, [1]);
    bench.offer(vec![offer(2, "a", 0, 1)]).await;
    assert!(is_woken(&second).await, "its turn came though the first took its job");
}

pub async fn one_who_leaves_passes_its_turn_on(bench: &Bench) {
    let (first, second) = (waiter(1), waiter(2));
    bench.take(&["a"], 1, &first).await;
    bench.take(&["a"], 1, &second).await;
    bench.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&first).await);
    bench.queue.leave(&[channel("a")], &first).await;
    assert!(is_woken(&second).await, "the job is still to be had");
}

pub async fn one_who_takes_less_than_there_is_wakes_the_next(bench: &Bench) {
    let (first, second) = (waiter(1), waiter(2));
    bench.take(&["a"], 1, &first).await;
    bench.take(&["a", "b"], 2, &second).await;
    bench.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&first).await);
    bench.offer(vec![offer(2, "a", 0, 1)]).await;
    assert_eq!(bench.take(&["a"], 1, &first).await, [1]);
    assert!(is_woken(&second).await);
    assert_eq!(bench.take(&["a", "b"], 2, &second).await, [2]);
}

pub async fn a_refill_wakes_one_for_each_job(bench: &Bench) {
    let (first, second, third) = (waiter(1), waiter(2), waiter(3));
    for waiter in [&first, &second, &third] {
        bench.take(&["a"], 1, waiter).await;
    }
    bench.suspect("a").await;
    assert_eq!(bench.hungry().await, [channel("a")]);
    bench.queue.refill(&channel("a"), vec![offer(1, "a", 0, 1), offer(2, "a", 0, 1)], true).await;
    assert!(is_woken(&first).await && is_woken(&second).await && still_waits(&third));
}

pub async fn one_who_took_enough_waits_for_nothing(bench: &Bench) {
    let (first, second) = (waiter(1), waiter(2));
    bench.take(&["a"], 1, &second).await;
    bench.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&second).await, "and no announcement is on its way any more");
    assert_eq!(bench.take(&["a"], 1, &first).await, [1]);
    assert!(bench.take(&["a"], 1, &second).await.is_empty());
    bench.offer(vec![offer(2, "a", 0, 1)]).await;
    assert!(is_woken(&second).await && still_waits(&first));
}
