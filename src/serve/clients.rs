//! How often one client may ask: each has a bucket that fills at the rate allowed and holds one second's worth.
//!
//! A client is its token where the server asks for tokens, and else its address (of IPv6 the network's 64 bits, which one
//! client has to itself). Behind a proxy all clients have the proxy's address: there only tokens tell them apart.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// By the digest of its token.
    Token([u8; 32]),
    Address(IpAddr),
}

impl Client {
    /// Whoever has this address.
    pub(super) fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(address.into()),
            IpAddr::V6(address) => Self::Address(Ipv6Addr::from(u128::from(address) >> 64 << 64).into()),
        }
    }
}

/// The buckets of all clients.
#[derive(Debug)]
pub(super) struct Clients {
    /// Nanoseconds for one request, if there is a bound.
    each: Option<u64>,
    began: Instant,
    /// When each client's bucket is full again, in nanoseconds from the beginning.
    full: Mutex<HashMap<Client, u64>>,
}

/// What a bucket holds: a second's worth.
const HELD: u64 = 1_000_000_000;
/// Clients remembered. Past it those with full buckets are forgotten, which changes nothing for them.
const REMEMBERED: usize = 1 << 16;

impl Clients {
    /// With so many requests a second for each, or without a bound.
    pub(super) fn new(rate: Option<u32>) -> Self {
        Self { each: rate.map(|rate| HELD / u64::from(rate.max(1))), began: Instant::now(), full: Mutex::default() }
    }

    /// Whether there is a bound.
    pub(super) fn are_bounded(&self) -> bool {
        self.each.is_some()
    }

    /// Takes a request from the client's bucket, if there is one left.
    pub(super) fn admit(&self, client: Client) -> bool {
        self.admit_at(client, self.began.elapsed().as_nanos() as u64)
    }

    fn admit_at(&self, client: Client, now: u64) -> bool {
        let Some(each) = self.each else { return true };
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if full.len() >= REMEMBERED && !full.contains_key(&client) {
            full.retain(|_, full| *full > now);
            // So many clients at a time: forgetting them all is better than memory without end.
            if full.len() >= REMEMBERED {
                full.clear();
            }
        }
        let full = full.entry(client).or_insert(now);
        let after = now.max(*full) + each;
        let left = after <= now + HELD;
        if left {
            *full = after;
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_rate_and_a_seconds_worth_at_once() {
        let clients = Clients::new(Some(10));
        let (one, other) = (Client::Token([1; 32]), Client::Token([2; 32]));
        let admitted = |client, at: u64, times: usize| (0..times).filter(|_| clients.admit_at(client, at)).count();
        assert_eq!(admitted(one, HELD, 30), 10);
        assert_eq!(admitted(other, HELD, 5), 5, "another's bucket is its own");
        assert_eq!(admitted(one, HELD + HELD / 2, 30), 5);
        assert_eq!(admitted(one, 2 * HELD + HELD / 2, 30), 10, "after the second of Retry-After there is a place");
        // Ten seconds at three times the rate.
        assert_eq!((0..300).filter(|i| clients.admit_at(one, 10 * HELD + i * HELD / 30)).count(), 109);
        assert!((0..1000).all(|_| Clients::new(None).admit_at(one, 0)));
    }

    #[test]
    fn an_address_is_a_client_and_so_is_a_network_of_ipv6() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        assert_eq!(at("10.0.0.1"), at("::ffff:10.0.0.1"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
    }

    #[test]
    fn memory_for_clients_is_bounded() {
        let clients = Clients::new(Some(1));
        for i in 0..3 * REMEMBERED as u32 {
            assert!(clients.admit_at(Client::Address(IpAddr::V4(i.into())), u64::from(i)));
        }
        assert!(clients.full.lock().unwrap().len() <= REMEMBERED);
    }
}
