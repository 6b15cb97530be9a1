//! What is lined up, in which order, and what is left to the store.

use super::{Bench, channel, offer, waiter};

pub async fn jobs_are_taken_by_priority_then_time_then_age(bench: &Bench) {
    let far = 4_000_000_000_000_000;
    bench.offer(vec![offer(3, "a", -7, 5), offer(2, "a", -7, 5), offer(1, "a", -7, far), offer(4, "a", 7, far)]).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [4, 2, 3, 1]);
    assert!(bench.all_of("a").await.is_empty(), "each is taken once");
}

pub async fn among_channels_the_longest_waiting_comes_first(bench: &Bench) {
    bench.offer(vec![offer(1, "a", 0, 9), offer(2, "b", 0, 300), offer(3, "c", 0, 1), offer(4, "b", 0, 2)]).await;
    assert_eq!(bench.take(&["a", "b"], 9, &waiter(1)).await, [4, 1, 2], "and no other channel's jobs");
}

pub async fn a_repeated_offer_is_one_job(bench: &Bench) {
    bench.offer(vec![offer(1, "a", 0, 1), offer(1, "a", 0, 1)]).await;
    bench.offer(vec![offer(1, "a", 0, 1)]).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [1]);
}

pub async fn a_job_offered_for_another_time_moves(bench: &Bench) {
    bench.offer(vec![offer(1, "a", 0, 1), offer(2, "a", 0, 2)]).await;
    bench.offer(vec![offer(1, "a", 0, 3)]).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [2, 1]);
}

pub async fn a_forgotten_job_is_not_taken(bench: &Bench) {
    bench.offer(vec![offer(1, "a", 0, 1), offer(2, "a", 0, 2)]).await;
    // Its run time may have changed since.
    bench.queue.forget(&[offer(1, "a", 0, 7).ready, offer(3, "b", 0, 1).ready]).await;
    bench.backstage.settle().await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [2]);
}

pub async fn what_finds_no_room_is_left_to_a_refill(bench: &Bench) {
    bench.offer((1..=6).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert!(bench.hungry().await.is_empty(), "the window is full");
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [1, 2, 3, 4]);
    assert_eq!(bench.hungry().await, [channel("a")]);
    assert!(bench.hungry().await.is_empty(), "one look at a time");
    bench.queue.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(6, "a", 0, 1)], true).await;
    assert_eq!(bench.all_of("a").await, [5, 6]);
    assert!(bench.hungry().await.is_empty(), "the store holds no more");
}

pub async fn a_full_window_keeps_the_front_of_the_line(bench: &Bench) {
    bench.offer((1..=4).map(|number| offer(number, "a", 0, 1)).collect()).await;
    bench.offer(vec![offer(5, "a", 9, 1)]).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [5, 1, 2, 3]);
    assert_eq!(bench.hungry().await, [channel("a")], "4 waits in the store");
}

pub async fn later_jobs_do_not_overtake_those_in_the_store(bench: &Bench) {
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert_eq!(bench.take(&["a"], 4, &waiter(1)).await, [1, 2, 3, 4]);
    bench.offer(vec![offer(9, "a", 0, 8)]).await;
    assert!(bench.take(&["a"], 4, &waiter(1)).await.is_empty(), "5 is before it");
    assert_eq!(bench.hungry().await, [channel("a")]);
    bench.queue.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(9, "a", 0, 8)], true).await;
    assert_eq!(bench.all_of("a").await, [5, 9]);
}

pub async fn what_is_offered_during_a_look_lines_up_behind_it(bench: &Bench) {
    bench.suspect("a").await;
    assert_eq!(bench.hungry().await, [channel("a")]);
    bench.offer(vec![offer(3, "a", 0, 7), offer(2, "a", 0, 5)]).await;
    assert!(bench.all_of("a").await.is_empty(), "there may be jobs before it");
    bench.queue.refill(&channel("a"), vec![offer(1, "a", 0, 1), offer(2, "a", 0, 5)], true).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [1, 2, 3]);
    assert!(bench.hungry().await.is_empty(), "nothing was missed");
}

pub async fn what_finds_no_room_during_a_look_keeps_the_channel_hungry(bench: &Bench) {
    bench.suspect("a").await;
    assert_eq!(bench.hungry().await, [channel("a")]);
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    bench.queue.refill(&channel("a"), Vec::new(), true).await;
    assert_eq!(bench.hungry().await, [channel("a")], "the look may have missed the last");
}

pub async fn a_refill_that_is_not_complete_keeps_the_channel_hungry(bench: &Bench) {
    bench.suspect("a").await;
    assert_eq!(bench.hungry().await, [channel("a")]);
    bench.queue.refill(&channel("a"), vec![offer(1, "a", 0, 1), offer(2, "a", 0, 2)], false).await;
    bench.offer(vec![offer(9, "a", 0, 9)]).await;
    assert_eq!(bench.take(&["a"], 9, &waiter(1)).await, [1, 2], "there are jobs before 9 in the store");
    assert_eq!(bench.hungry().await, [channel("a")]);
}

pub async fn a_look_goes_on_behind_what_was_lined_up(bench: &Bench) {
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert_eq!(bench.take(&["a"], 3, &waiter(1)).await, [1, 2, 3]);
    assert_eq!(bench.look("a").await, Some(4));
    bench.queue.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(6, "a", 0, 1)], false).await;
    bench.offer(vec![offer(9, "a", 0, 9), offer(2, "a", 0, 1)]).await;
    assert_eq!(bench.all_of("a").await, [2, 4, 5, 6], "9 is behind what is still in the store");
    assert_eq!(bench.look("a").await, Some(6));
    bench.queue.refill(&channel("a"), vec![offer(7, "a", 0, 1), offer(9, "a", 0, 9)], true).await;
    assert_eq!(bench.all_of("a").await, [7, 9]);
}

pub async fn what_is_offered_in_front_of_where_a_look_begins_is_lined_up(bench: &Bench) {
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 2)).collect()).await;
    assert_eq!(bench.all_of("a").await, [1, 2, 3, 4]);
    bench.offer(vec![offer(7, "a", 0, 1), offer(8, "a", 0, 3)]).await;
    assert_eq!(bench.all_of("a").await, [7], "the window is empty, and yet 8 is behind 5");
    assert_eq!(bench.look("a").await, Some(4));
    bench.offer(vec![offer(6, "a", 0, 1), offer(9, "a", 0, 3)]).await;
    bench.queue.refill(&channel("a"), vec![offer(5, "a", 0, 2), offer(8, "a", 0, 3)], false).await;
    assert_eq!(bench.all_of("a").await, [6, 5, 8]);
    assert_eq!(bench.look("a").await, Some(8), "and not behind 9, which is in the store");
}

pub async fn what_is_offered_during_a_look_that_reads_past_it_is_lined_up(bench: &Bench) {
    bench.suspect("a").await;
    assert_eq!(bench.look("a").await, None);
    bench.offer(vec![offer(2, "a", 0, 2), offer(9, "a", 0, 9)]).await;
    // The store was read before 2 was in it.
    bench.queue.refill(&channel("a"), vec![offer(1, "a", 0, 1), offer(3, "a", 0, 3)], false).await;
    assert_eq!(bench.all_of("a").await, [1, 2, 3]);
    assert_eq!(bench.look("a").await, Some(3));
}

pub async fn what_no_longer_fits_is_where_the_next_look_begins(bench: &Bench) {
    bench.suspect("a").await;
    assert_eq!(bench.look("a").await, None);
    bench.queue.refill(&channel("a"), (3..=6).map(|number| offer(number, "a", 0, 1)).collect(), false).await;
    bench.offer(vec![offer(1, "a", 0, 1), offer(2, "a", 0, 1)]).await;
    assert_eq!(bench.all_of("a").await, [1, 2, 3, 4]);
    assert_eq!(bench.look("a").await, Some(4), "5 and 6 made room");
}

pub async fn a_suspicion_has_the_whole_line_looked_through(bench: &Bench) {
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert_eq!(bench.all_of("a").await, [1, 2, 3, 4]);
    bench.suspect("a").await;
    assert_eq!(bench.look("a").await, None);
}

pub async fn a_line_is_as_long_as_a_look_leaves_it(bench: &Bench) {
    // Somebody else than who looked first, and would have to hear of the offers before looking again.
    let (one, a) = (waiter(2), channel("a"));
    assert!(bench.take(&["a"], 1, &waiter(1)).await.is_empty());
    assert_eq!(bench.queue.line_length(&a), Some(0));
    bench.offer((1..=3).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert!(bench.queue.line_length(&a).is_some_and(|length| length >= 3), "rather too many than too few");
    assert_eq!(bench.take(&["a"], 1, &one).await, [1]);
    assert_eq!(bench.queue.line_length(&a), Some(2));
    assert_eq!(bench.take(&["a"], 9, &one).await, [2, 3]);
    assert_eq!(bench.queue.line_length(&a), Some(0));
}

pub async fn a_line_has_any_length_while_the_store_may_hold_more(bench: &Bench) {
    bench.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    bench.take(&["a"], 1, &waiter(1)).await;
    assert_eq!(bench.queue.line_length(&channel("a")), None, "the window holds four");
    bench.suspect("b").await;
    assert_eq!(bench.queue.line_length(&channel("b")), None);
}
