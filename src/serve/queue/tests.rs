use super::*;

fn queue(limit: usize, max: usize, delay: Duration, preferred: &[usize]) -> Arc<Queue> {
    Arc::new(Queue::new(limit, Batching { max, delay, preferred: preferred.to_vec() }))
}

type Reply = oneshot::Receiver<Result<Answer, Refusal>>;

/// A job of so many images of one byte, and its client.
fn job(count: usize) -> (Job, Reply) {
    let (reply, answer) = oneshot::channel();
    let place = Arc::new(Place { queue: queue(0, 1, Duration::ZERO, &[]), images: AtomicUsize::new(0) });
    (Job { images: Images::Bytes(vec![0; count].into()), count, arrived: Instant::now(), place, reply }, answer)
}

/// Puts jobs of these sizes in; their clients.
fn fill(queue: &Queue, counts: &[usize]) -> Vec<Reply> {
    let (jobs, clients): (Vec<_>, Vec<_>) = counts.iter().map(|&count| job(count)).unzip();
    queue.push(jobs).unwrap();
    clients
}

fn sizes(batch: Option<Vec<Job>>) -> Vec<usize> {
    batch.unwrap().iter().map(|job| job.count).collect()
}

#[test]
fn batches_are_whole_jobs_in_order_and_never_larger_than_the_largest() {
    let queue = queue(100, 8, Duration::ZERO, &[]);
    let _clients = fill(&queue, &[3, 4, 2, 8, 1]);
    assert_eq!(sizes(queue.next_batch()), [3, 4]);
    assert_eq!(sizes(queue.next_batch()), [2]);
    assert_eq!(sizes(queue.next_batch()), [8]);
    assert_eq!(sizes(queue.next_batch()), [1]);
    assert_eq!(queue.depth(), 0);
}

#[test]
fn preferred_sizes_cut_what_waits() {
    let queue = queue(100, 8, Duration::from_secs(60), &[2, 4]);
    let _clients = fill(&queue, &[1; 7]);
    assert_eq!(sizes(queue.next_batch()), [1; 4]);
    assert_eq!(sizes(queue.next_batch()), [1; 2]);
    let _more = fill(&queue, &[1; 9]);
    assert_eq!(sizes(queue.next_batch()), [1; 8]);
    let _large = fill(&queue, &[7]); // two ones wait before it; the large job is beyond the preferred sizes, within the largest
    assert_eq!(sizes(queue.next_batch()), [1, 1]);
    assert_eq!(sizes(queue.next_batch()), [7]);
}

#[test]
fn first_job_waits_for_the_delay_and_no_longer() {
    let delay = Duration::from_millis(30);
    let queue = queue(100, 8, delay, &[]);
    let began = Instant::now();
    let _clients = fill(&queue, &[1, 1]);
    assert_eq!(sizes(queue.next_batch()), [1, 1]);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
}

#[test]
fn jobs_of_clients_that_left_are_not_computed() {
    let queue = queue(100, 4, Duration::ZERO, &[]);
    let mut clients = fill(&queue, &[1, 2, 1, 1]);
    drop(clients.remove(1));
    drop(clients.remove(0));
    assert_eq!(sizes(queue.next_batch()), [1, 1]);
    assert_eq!(queue.depth(), 0);
}

#[test]
fn left_jobs_do_not_pile_up() {
    let queue = queue(4, 4, Duration::ZERO, &[]);
    for _ in 0..1000 {
        drop(fill(&queue, &[1]));
    }
    assert!(queue.depth() <= 9, "{}", queue.depth());
}

#[test]
fn places_are_bounded_and_come_back() {
    let queue = queue(5, 4, Duration::ZERO, &[]);
    let three = queue.admit(3).unwrap();
    assert!(queue.admit(3).is_none());
    assert!(queue.admit(usize::MAX).is_none(), "a sum that overflows is no place");
    let two = queue.admit(2).unwrap();
    assert_eq!(queue.requests(), 2);
    three.places.iter().for_each(|place| place.free());
    assert!(queue.admit(4).is_none());
    assert_eq!(queue.admit(3).map(|three| three.places.len()), Some(1), "computed, though not told yet");
    drop(three);
    assert_eq!(queue.requests(), 1);
    assert!(queue.admit(4).is_none());
    assert!(queue.admit(3).is_some());
    drop(two);
    assert_eq!(queue.requests(), 0);
}

#[test]
fn request_larger_than_a_batch_has_a_place_for_each_part() {
    let queue = queue(100, 4, Duration::ZERO, &[]);
    for (images, parts) in [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)] {
        let admitted = queue.admit(images).unwrap();
        assert_eq!(admitted.places.len(), parts);
        admitted.places[0].free();
        assert!(queue.admit(100 - images + images.min(4)).is_some());
    }
    assert!(queue.admit(100).is_some());
}

#[test]
fn closed_queue_gives_what_it_has_and_then_ends() {
    let queue = queue(100, 4, Duration::from_secs(60), &[]);
    let _clients = fill(&queue, &[1, 1]);
    queue.close();
    assert!(queue.push(vec![job(1).0]).is_err());
    assert_eq!(sizes(queue.next_batch()), [1, 1], "without waiting for the delay");
    assert!(queue.next_batch().is_none());
}

#[test]
fn waiting_instance_is_woken_by_an_arrival_and_by_the_end() {
    let queue = queue(100, 4, Duration::ZERO, &[]);
    let waiter = queue.clone();
    let thread = std::thread::spawn(move || (waiter.next_batch().map(|batch| batch.len()), waiter.next_batch().is_none()));
    std::thread::sleep(Duration::from_millis(10));
    let _clients = fill(&queue, &[1]);
    std::thread::sleep(Duration::from_millis(10));
    queue.close();
    assert_eq!(thread.join().unwrap(), (Some(1), true));
}

#[test]
fn images_are_split_in_order() {
    for mut images in [Images::Bytes(vec![1, 2, 3].into()), Images::Floats(vec![1.0, 2.0, 3.0])] {
        let first = images.split_to(2);
        assert_eq!((first.len(), images.len()), (2, 1));
        match (first.view(), images.view()) {
            (predict::Images::Bytes(first), predict::Images::Bytes(rest)) => assert_eq!((first, rest), (&[1, 2][..], &[3][..])),
            (predict::Images::Floats(first), predict::Images::Floats(rest)) => assert_eq!((first, rest), (&[1.0, 2.0][..], &[3.0][..])),
            _ => unreachable!("the kind does not change"),
        }
    }
}
