//! What a report says of the machine and the day.

use std::time::{SystemTime, UNIX_EPOCH};

/// The most bytes of memory that this process has had resident so far, where the system tells (Linux).
pub fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?;
    kilobytes.trim().parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}

/// The processor's name, where the system tells (Linux).
pub fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = info.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim().to_owned())
}

/// Now, as `2026-11-08T19:04:05Z`.
pub fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    written(seconds)
}

/// Seconds since 1970 as a date and a time of day, UTC.
fn written(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the day that leap years add is the last (Howard Hinnant, `civil_from_days`).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3_600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let days = [(0, "1970-01-01"), (68_169_600, "1972-02-29"), (951_868_800, "2000-03-01"), (4_107_542_400, "2100-03-01")];
        for (seconds, day) in days {
            assert_eq!(written(seconds), format!("{day}T00:00:00Z"));
        }
        assert_eq!(written(1_794_164_645), "2026-11-08T19:04:05Z");
    }

    #[test]
    fn linux_tells_the_peak_of_memory() {
        assert_eq!(peak_host_bytes().is_some_and(|bytes| bytes > 1 << 20), cfg!(target_os = "linux"));
    }
}
