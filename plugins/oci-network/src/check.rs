//! For the doctor: what on this host would keep containers from the network, and what a crash left.

use std::{fs, path::Path, time::Duration};

use host_core::PluginError;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{
    block,
    config::Config,
    error,
    forwarding::{self, objects},
    host,
    name::{GROUP, Key, TABLE_PREFIX},
    netlink::Netlink,
    nft::Nft,
    resolv,
    subnet::Subnet,
};

/// For programs of others; the doctor should not hang with them.
const DEADLINE: Duration = Duration::from_secs(5);

/// Something on this host that keeps containers from working as they should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    /// What it is.
    pub what: String,
    /// What an administrator can do about it.
    pub remedy: String,
}

/// Looks for what would cut containers off; changes nothing.
///
/// # Errors
/// As [`Networks::open`](crate::Networks::open) for a missing `nft` program, missing privileges and a kernel without
/// nf_tables.
pub async fn check(config: &Config) -> Result<Vec<Concern>, PluginError> {
    let ruleset = Nft::default().list(&["ruleset"]).await?;
    let uplink =
        error::blocking("asking for the uplink", || host::uplink_name(&mut Netlink::route()?)).await?;
    let mut concerns = closed_forward_chains(&ruleset, uplink.as_deref().unwrap_or("<uplink>"));
    concerns.extend(legacy_forward_chain().await);
    concerns.extend(name_servers(config).await?);
    Ok(concerns)
}

/// Chains of others that drop what they do not know. An accept of ours cannot overrule them.
fn closed_forward_chains(ruleset: &Value, uplink: &str) -> Vec<Concern> {
    let is_ours = |chain: &Value| chain["table"].as_str().is_some_and(|name| name.starts_with(TABLE_PREFIX));
    let handles_ipv4 = |chain: &Value| chain["family"] == "ip" || chain["family"] == "inet";
    objects(ruleset, "chain")
        .filter(|chain| chain["hook"] == "forward" && handles_ipv4(chain) && !is_ours(chain))
        .filter(|chain| {
            (chain["policy"] == "drop" || ends_closed(ruleset, chain)) && !knows_us(ruleset, chain)
        })
        .map(|chain| concern(ruleset, chain, uplink))
        .collect()
}

fn rules<'a>(ruleset: &'a Value, chain: &'a Value) -> impl Iterator<Item = &'a Value> {
    objects(ruleset, "rule").filter(|rule| {
        rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule["chain"] == chain["name"]
    })
}

/// As firewalld does it: the policy accepts, the last rule does not.
fn ends_closed(ruleset: &Value, chain: &Value) -> bool {
    let verdict = |rule: &Value| rule["expr"].as_array().and_then(|parts| parts.first().cloned());
    let last = rules(ruleset, chain).last().and_then(verdict);
    last.is_some_and(|first| first.get("drop").is_some() || first.get("reject").is_some())
}

/// Whether the administrator has made a rule about containers' interfaces, anywhere in the same table.
fn knows_us(ruleset: &Value, chain: &Value) -> bool {
    let same_table = |rule: &&Value| rule["family"] == chain["family"] && rule["table"] == chain["table"];
    objects(ruleset, "rule").filter(same_table).any(|rule| {
        let text = rule["expr"].to_string();
        text.contains("\"hs*\"") || text.contains(&format!("\"right\":{GROUP}"))
    })
}

fn concern(ruleset: &Value, chain: &Value, uplink: &str) -> Concern {
    let text = |key: &str| chain[key].as_str().unwrap_or("?").to_owned();
    let (family, table, name) = (text("family"), text("table"), text("name"));
    let has_chain = |wanted: &str| {
        objects(ruleset, "chain").any(|one| {
            one["table"] == chain["table"]
                && one["name"].as_str().is_some_and(|name| name.starts_with(wanted))
        })
    };
    let remedy = if has_chain("DOCKER-USER") {
        // No wider: what this accepts, Docker does not look at any more, and keeps off its own containers.
        format!(
            "iptables -I DOCKER-USER -i hs+ -o {uplink} -j ACCEPT; iptables -I DOCKER-USER -o hs+ -m conntrack \
             --ctstate DNAT,ESTABLISHED,RELATED -j ACCEPT"
        )
    } else if has_chain("ufw-") {
        "ufw default allow routed".to_owned()
    } else if table == "firewalld" {
        "firewall-cmd --permanent --zone=trusted --add-interface=hs+; firewall-cmd --reload".to_owned()
    } else {
        format!(
            "nft insert rule {family} {table} {name} iifgroup {GROUP} accept; nft insert rule {family} {table} \
             {name} oifgroup {GROUP} accept"
        )
    };
    Concern {
        what: format!(
            "chain {name} of the firewall's table {family} {table} drops forwarded packets it does not know, so \
             containers reach nothing outside and nothing outside reaches their ports"
        ),
        remedy: format!("{remedy} (what containers may do is still limited by the host service's own table)"),
    }
}

/// What the older iptables keeps is invisible to `nft`.
async fn legacy_forward_chain() -> Option<Concern> {
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    if !tables.lines().any(|name| name == "filter") {
        return None;
    }
    let asked = Command::new("iptables-legacy").args(["-S", "FORWARD"]).kill_on_drop(true).output();
    let output = timeout(DEADLINE, asked).await.ok()?.ok()?;
    let rules = String::from_utf8_lossy(&output.stdout);
    (rules.contains("-P FORWARD DROP") && !rules.contains("hs+")).then(|| Concern {
        what: "iptables-legacy's FORWARD chain drops what it does not know, so containers are cut off"
            .to_owned(),
        remedy: "iptables-legacy -I FORWARD -i hs+ -j ACCEPT; iptables-legacy -I FORWARD -o hs+ -j ACCEPT"
            .to_owned(),
    })
}

async fn name_servers(config: &Config) -> Result<Option<Concern>, PluginError> {
    let dns = config.dns.clone();
    let (text, own) = error::blocking("reading resolv.conf", move || {
        Ok((resolv::text(&dns), host::addresses(&mut Netlink::route()?)?))
    })
    .await?;
    let servers = resolv::servers(&text);
    let what = if servers.is_empty() {
        "no name server of the host can be reached by a container".to_owned()
    } else if servers.iter().all(|server| own.contains(server)) {
        format!("the name servers {servers:?} are the host itself, which containers cannot reach")
    } else {
        return Ok(None);
    };
    let remedy = "set runtime.oci.network.dns to servers outside this host".to_owned();
    Ok(Some(Concern { what, remedy }))
}

/// What a service that did not end by itself left here. [`Networks::open`](crate::Networks::open) takes it over,
/// [`Networks::close`](crate::Networks::close) after it removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// The nftables table, family `inet`.
    pub table: Option<String>,
    /// The claimed block, a `blackhole` route.
    pub block: Option<Subnet>,
    /// Host ends of networks; those of containers that still run are among them.
    pub interfaces: Vec<String>,
    /// `net.ipv4.ip_forward` was turned on.
    pub forwarding: bool,
}

impl Leftovers {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What there is of the store `key`, whether of a running service or left over; changes nothing.
///
/// # Errors
/// As [`check`].
pub async fn leftovers(key: &str, state_dir: &Path) -> Result<Leftovers, PluginError> {
    let key = Key::new(key)?;
    let tables = Nft::default().list(&["tables"]).await?;
    let table = key.table();
    let is_there =
        objects(&tables, "table").any(|one| one["family"] == "inet" && one["name"] == table.as_str());
    let (remembered, prefix) = (block::remembered(state_dir), key.interface_prefix());
    let (block, interfaces) = error::blocking("looking for leftovers", move || {
        let mut netlink = Netlink::route()?;
        let routes = host::routes(&mut netlink)?;
        let claimed = |block: &Subnet| routes.iter().any(|route| route.is_claim() && route.to == *block);
        let interfaces = remembered.map(|block| host::links(&mut netlink, &prefix, block)).transpose()?;
        Ok((remembered.filter(claimed), interfaces.unwrap_or_default()))
    })
    .await?;
    let forwarding = forwarding::is_noted(state_dir);
    Ok(Leftovers { table: is_there.then_some(table), block, interfaces, forwarding })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(rules: Value) -> Value {
        let chain = serde_json::json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
            "hook": "forward", "policy": "accept"}});
        let mut all = vec![chain];
        all.extend(rules.as_array().cloned().unwrap_or_default());
        serde_json::json!({ "nftables": all })
    }

    fn rule(expr: Value) -> Value {
        serde_json::json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": expr}})
    }

    #[test]
    fn a_chain_that_ends_by_rejecting_is_closed() {
        let accept = rule(serde_json::json!([{"accept": null}]));
        let reject = rule(serde_json::json!([{"reject": {"type": "icmp"}}]));
        let about_us = rule(serde_json::json!([{"match": {"op": "==", "left": {"meta": {"key": "iifname"}},
            "right": "hs*"}}, {"accept": null}]));
        let count = |rules: &[&Value]| closed_forward_chains(&ruleset(serde_json::json!(rules)), "up0").len();
        assert_eq!(count(&[&accept]), 0);
        assert_eq!(count(&[&accept, &reject]), 1);
        assert_eq!(count(&[&reject, &accept]), 0);
        assert_eq!(count(&[&about_us, &reject]), 0);
    }

    #[test]
    fn dockers_remedy_opens_no_way_to_dockers_own_containers() {
        let user = serde_json::json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}});
        let reject = rule(serde_json::json!([{"reject": {"type": "icmp"}}]));
        let found = closed_forward_chains(&ruleset(serde_json::json!([user, reject])), "up0");
        let remedy = found[0].remedy.split(" (").next().unwrap();
        assert_eq!(
            remedy,
            "iptables -I DOCKER-USER -i hs+ -o up0 -j ACCEPT; iptables -I DOCKER-USER -o hs+ -m conntrack --ctstate \
             DNAT,ESTABLISHED,RELATED -j ACCEPT"
        );
    }
}
