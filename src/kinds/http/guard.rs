//! Where a request of the daemon must not go: whoever may submit jobs is not to speak with the daemon's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The address at which Amazon's IPv6 hosts ask for their credentials; all others of the kind are link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// What `http` jobs may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRules {
    /// Where runward's own API is served.
    pub own: Vec<SocketAddr>,
    /// Whether they may reach it.
    pub allow_own_api: bool,
    /// Whether they may reach link-local addresses, where clouds hand out credentials.
    pub allow_link_local: bool,
}

impl HttpRules {
    /// Why this address, to which a host's name was resolved, is not to be connected to.
    pub(super) fn refuse(&self, address: SocketAddr) -> Option<String> {
        let ip = plain(address.ip());
        if !self.allow_link_local && is_link_local(ip) {
            return Some(format!(
                "{ip} is a link-local address, where clouds hand out credentials; `http_jobs.allow_link_local` in the \
                 settings allows it"
            ));
        }
        // The same port on another address of this machine is refused too: it may lead here.
        let own = self.own.iter().any(|own| {
            own.port() == address.port() && (ip.is_loopback() || ip.is_unspecified() || plain(own.ip()) == ip)
        });
        (own && !self.allow_own_api).then(|| own_api(address))
    }

    /// The same, once connected: who is at both ends of a connection is this machine, by whatever address.
    pub(super) fn refuse_connected(&self, peer: SocketAddr, local: SocketAddr) -> Option<String> {
        let own =
            self.own.iter().any(|own| own.port() == peer.port()) && plain(peer.ip()) == plain(local.ip());
        if own && !self.allow_own_api {
            return Some(own_api(peer));
        }
        self.refuse(peer)
    }
}

fn own_api(address: SocketAddr) -> String {
    format!("{address} is runward's own API; `http_jobs.allow_own_api` in the settings allows it")
}

/// An IPv4 address in the clothes of an IPv6 one, mapped or through NAT64, is what it is.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => ip,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == METADATA_V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rules: &HttpRules, address: &str) -> bool {
        rules.refuse(address.parse().expect("an address")).is_some()
    }

    #[test]
    fn the_own_api_is_refused_by_whatever_address() {
        let own = ["127.0.0.1:7711", "[::1]:7712"].map(|own| own.parse().expect("an address"));
        let rules = HttpRules { own: own.into(), ..HttpRules::default() };
        for address in [
            "127.0.0.1:7711",
            "127.1.2.3:7711",
            "0.0.0.0:7711",
            "[::1]:7711",
            "[::]:7712",
            "[::ffff:127.0.0.1]:7711",
            "[::ffff:0.0.0.0]:7711",
            "[64:ff9b::7f00:1]:7711",
        ] {
            assert!(refused(&rules, address), "{address}");
        }
        for address in ["127.0.0.1:80", "10.0.0.1:7711", "[2001:db8::1]:7712"] {
            assert!(!refused(&rules, address), "{address}");
        }
        let connected = |peer: &str, local: &str| {
            rules
                .refuse_connected(peer.parse().expect("a peer"), local.parse().expect("an address"))
                .is_some()
        };
        assert!(connected("10.0.0.1:7711", "10.0.0.1:50000"));
        assert!(!connected("10.0.0.1:7711", "10.0.0.2:50000"));
        let allowed = HttpRules { allow_own_api: true, ..rules };
        assert!(!refused(&allowed, "127.0.0.1:7711"));
    }

    #[test]
    fn link_local_addresses_are_refused() {
        let rules = HttpRules::default();
        for address in [
            "169.254.169.254:80",
            "[fe80::1]:80",
            "[febf::1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[fd00:ec2::254]:80",
        ] {
            assert!(refused(&rules, address), "{address}");
        }
        assert!(!refused(&rules, "[fec0::1]:80") && !refused(&rules, "169.253.0.1:80"));
        assert!(!refused(&HttpRules { allow_link_local: true, ..rules }, "169.254.169.254:80"));
    }
}
