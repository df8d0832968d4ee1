//! Which addresses a blob may come from, and the resolver that asks before every connection.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Where clouds answer with a machine's credentials, beside the link-local addresses.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// The rule for addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    /// Whether those of private networks and of this machine are allowed.
    pub(super) allow_private: bool,
    /// Hosts whose addresses may be private because the configuration names them as endpoints.
    pub(super) endpoints: Arc<HashSet<String>>,
}

impl Addresses {
    /// Whether a connection to `address`, under the name `host`, may be made; the error says why not.
    pub(super) fn check(&self, host: &str, address: IpAddr) -> Result<(), String> {
        let plain = unwrapped(address);
        if never(plain) {
            return Err(format!(
                "{host} leads to {address}, a link-local, metadata or multicast address, which none may"
            ));
        }
        if private(plain) && !self.allow_private && !self.endpoints.contains(host) {
            return Err(format!(
                "{host} leads to {address}, which is private: set origin.blob.allow_private_addresses to allow it"
            ));
        }
        Ok(())
    }
}

/// The IPv4 address within an IPv6 one (mapped, compatible, translated, NAT64 with either prefix, 6to4), else the
/// address itself.
fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let pair = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low] => pair(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => pair(high, low),
        [0x2002, high, low, ..] => pair(high, low),
        _ => address,
    }
}

fn never(address: IpAddr) -> bool {
    METADATA.contains(&address)
        || match address {
            IpAddr::V4(v4) => {
                v4.is_link_local() || v4.is_multicast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240
            }
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified(),
        }
}

fn private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let testing = a == 198 && (18..20).contains(&b);
            v4.is_private() || v4.is_loopback() || shared || testing || [a, b, c] == [192, 0, 0]
        }
        // Unique local, and site-local as it once was.
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || (v6.segments()[0] & 0xffc0) == 0xfec0,
    }
}

/// Resolves by the system and gives only addresses that are allowed: the connection goes to what was checked,
/// so that a name which changes between the check and the connection gains nothing.
#[derive(Clone, Debug)]
pub(super) struct CheckedResolver(pub(super) Addresses);

/// What a refused address is told by; found again in the chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct AddressRefused {
    pub(super) reason: String,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let rule = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let checked = found.iter().map(|address| rule.check(name.as_str(), address.ip()));
            // One refused address refuses the name: who mixes them is up to something.
            if let Some(reason) = checked.filter_map(Result::err).next() {
                return Err(Box::new(AddressRefused { reason }) as Box<dyn std::error::Error + Send + Sync>);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow_private: bool) -> Addresses {
        Addresses { allow_private, endpoints: Arc::new(HashSet::from(["urza".to_owned()])) }
    }

    #[test]
    fn metadata_addresses_are_refused_to_everyone() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:2:3:4:a9fe:a9fe",
            "::ffff:0:a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let address = address.parse().unwrap();
            assert!(rule(true).check("urza", address).is_err(), "{address}");
        }
    }

    #[test]
    fn private_addresses_need_leave() {
        for address in ["127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "fd12::1", "100.64.0.1"]
        {
            let address = address.parse().unwrap();
            let refused = rule(false).check("blobs", address).unwrap_err();
            assert!(refused.contains("origin.blob.allow_private_addresses"), "{refused}");
            assert!(rule(true).check("blobs", address).is_ok() && rule(false).check("urza", address).is_ok());
        }
        for address in ["1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(rule(false).check("blobs", address.parse().unwrap()).is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_connected_to() {
        let name = "localhost".parse().unwrap();
        let refused = CheckedResolver(rule(false)).resolve(name).await.err().unwrap();
        assert!(refused.downcast_ref::<AddressRefused>().unwrap().reason.contains("localhost"));
        assert!(CheckedResolver(rule(true)).resolve("localhost".parse().unwrap()).await.is_ok());
    }
}
