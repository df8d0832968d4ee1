//! What is scraped, and within which bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use futures_util::future::{BoxFuture, pending};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::{
    encode::{Form, encode},
    metric::{Kind, Metric},
    reports::Reports,
    routes::{Probe, router},
    samples::Samples,
    server::{Accepting, accept},
};
use crate::{
    actor::base::AskError,
    id::SessionId,
    wire::{
        ActorReport, BreakerReport, CacheReport, DeviceReport, EventsReport, FetchingReport, FleetReport,
        GpuReport, LookupReport, OffersReport, RecentReport, RecordsReport, RouteReport, SeedState,
        SessionReport, StatusReport, TierReport, TotalsReport, TransitionReport, TurnsReport, WarmReport,
    },
};

fn breaker(name: &str, state: &str, retry_after_ms: Option<u64>) -> BreakerReport {
    BreakerReport {
        name: name.to_owned(),
        state: state.to_owned(),
        since_ms: 10,
        cause: None,
        failures: 5,
        failure_percent: None,
        slow_percent: None,
        retry_after_ms,
        trials: 0,
        opened: 3,
        half_opened: 2,
        closed: 1,
        refused: 7,
        last_failure: None,
    }
}

fn session(number: u64) -> SessionReport {
    SessionReport {
        session: SessionId(number),
        device: "cpu".to_owned(),
        client: "a client\"\n".to_owned(),
        pid: 1,
        uid: 2,
        layers: 3,
        live_seeds: 4,
        tickets: 5,
        arena_bytes: 6,
        saved_bytes: 7,
        passes: 8,
        refused_passes: 0,
        supply_waits: 0,
        pass_plans: 1,
        held_bytes: 9,
        compute_us: 10,
        turn_wait_us: 11,
        pass_p50_us: 12.0,
        pass_p99_us: 13.0,
        recent: RecentReport::default(),
    }
}

fn status() -> StatusReport {
    StatusReport {
        version: "1.2.3".to_owned(),
        sessions: vec![session(1), session(2)],
        actors: vec![ActorReport { name: "validator".to_owned(), state: "running".to_owned(), restarts: 2 }],
        breakers: vec![
            breaker("urza https://urza \"a\\b\"", "open", Some(1500)),
            breaker("redis", "closed", None),
            breaker("redis", "half_open", None),
        ],
        warming: WarmReport { planned: 3, loaded: 2, failed: 1, done: true, ..WarmReport::default() },
        events: EventsReport {
            told: 12,
            lost: 3,
            watchers: 1,
            transitions: vec![TransitionReport {
                from: SeedState::Loading,
                to: SeedState::Blending,
                count: 4,
            }],
        },
        totals: TotalsReport {
            sessions: 9,
            forward_passes: 20,
            backward_passes: 10,
            refused_passes: 6,
            supply_waits: 0,
            pass_plans: 6,
            compute_us: 2_500_000,
            turn_wait_us: 1_250_000,
        },
        device: DeviceReport {
            gpus: vec![
                GpuReport {
                    name: "cuda:0".to_owned(),
                    budget_bytes: 9000,
                    used_bytes: Some(700),
                    sessions: 2,
                    ..GpuReport::default()
                },
                GpuReport { name: "cuda:1".to_owned(), budget_bytes: 8000, ..GpuReport::default() },
            ],
            ..DeviceReport::default()
        },
        turns: TurnsReport { places: 4, running: 3, waiting: 2 },
        records: Some(RecordsReport { written: 7, dropped: [("full".to_owned(), 5)].into() }),
        ..StatusReport::default()
    }
}

fn cache() -> CacheReport {
    let device = TierReport {
        name: "device".to_owned(),
        hits: 11,
        evictions: 1,
        overruns: 3,
        entries: Some(2),
        bytes: Some(4096),
        limit_bytes: Some(8192),
        ..TierReport::default()
    };
    let silent = TierReport { name: "redis".to_owned(), misses: 4, ..TierReport::default() };
    let route = |up_to_bytes| RouteReport {
        place: "redis".to_owned(),
        up_to_bytes,
        mean_us: 2500,
        miss_us: 1200,
        samples: 4,
        misses: 2,
        passed_by: true,
        passes: 6,
    };
    CacheReport {
        tiers: vec![device, silent],
        routes: vec![route(Some(64 << 10)), route(None)],
        lookups: LookupReport { found: 1, not_found: 2, joined: 63, ..LookupReport::default() },
        fleet: Some(FleetReport { listening: true, announced: 1, ..FleetReport::default() }),
        offers: OffersReport { taken_in: 3, known: 4, refused: 2, failed: 1 },
        stale: 1,
        fetching: FetchingReport { bytes: 12, limit_bytes: 34, waiting: 5, refused: 6 },
        ..CacheReport::default()
    }
}

fn page(form: Form) -> String {
    encode(Samples::of(&status(), Some(&cache()), true), form).unwrap()
}

/// The series of a page by name and labels, each held to the declaration of its metric.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let (mut series, mut told) = (BTreeMap::new(), BTreeSet::new());
    let mut family = None;
    for line in page.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let of_name = |metric: &&Metric| {
                let known = metric.family().name;
                known == name
                    || known.strip_suffix("_total") == Some(name)
                    || known.strip_suffix("_info") == Some(name)
            };
            let metric = Metric::ALL.iter().find(of_name).unwrap_or_else(|| panic!("{name} is not declared"));
            assert_eq!(help, metric.family().help);
            assert!(told.insert(metric.family().name), "{name} is described twice");
            family = Some(metric.family());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let kind = rest.split_once(' ').unwrap().1;
            let declared = family.unwrap().kind;
            assert!(kind == declared.as_str() || (declared == Kind::Info && kind == "gauge"), "{line}");
        } else {
            let family = family.unwrap();
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (bare, labels) = name.split_once('{').unwrap_or((name, "}"));
            assert_eq!(bare, family.name, "{line}");
            let keys: Vec<_> =
                labels.split("\",").map(|label| label.split_once('=').map_or("", |(key, _)| key)).collect();
            let declared = if family.labels.is_empty() { &[""][..] } else { family.labels };
            assert_eq!(keys, declared, "{line}");
            assert!(series.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line} comes twice");
        }
    }
    let all: BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.family().name).collect();
    assert_eq!(told, all, "every metric has a number here");
    series
}

#[test]
fn every_metric_is_declared_once_and_named_by_the_rules() {
    let mut names = BTreeSet::new();
    for metric in Metric::ALL {
        let family = metric.family();
        assert!(names.insert(family.name), "{} is declared twice", family.name);
        assert!(family.name.starts_with("kasmina_"), "{}", family.name);
        assert!(family.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", family.name);
        assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
        assert_eq!(family.name.ends_with("_info"), family.kind == Kind::Info, "{}", family.name);
        // The encoder writes help as it is.
        assert!(family.help.ends_with('.') && !family.help.contains(['\n', '\\', '"']), "{}", family.name);
        for label in family.labels {
            let bounded = [
                "version",
                "device",
                "dependency",
                "state",
                "from",
                "to",
                "tier",
                "outcome",
                "result",
                "size_class",
                "direction",
                "actor",
                "from",
                "reason",
            ];
            assert!(bounded.contains(label), "{}: are the values of {label} bounded?", family.name);
        }
    }
}

#[test]
fn reports_become_series_in_both_forms() {
    let (plain, open) = (page(Form::Prometheus), page(Form::OpenMetrics));
    assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"));
    let series = parse(&plain);
    assert_eq!(series, parse(&open));
    let urza = r#"dependency="urza https://urza \"a\\b\"""#;
    for (name, value) in [
        ("kasmina_build_info{version=\"1.2.3\"}", 1.0),
        ("kasmina_ready", 1.0),
        (&format!("kasmina_breaker_state{{{urza},state=\"open\"}}"), 1.0),
        (&format!("kasmina_breaker_state{{{urza},state=\"closed\"}}"), 0.0),
        (&format!("kasmina_breaker_state{{{urza},state=\"half_open\"}}"), 0.0),
        (&format!("kasmina_breaker_transitions_total{{{urza},to=\"open\"}}"), 3.0),
        (&format!("kasmina_breaker_transitions_total{{{urza},to=\"half_open\"}}"), 2.0),
        (&format!("kasmina_breaker_transitions_total{{{urza},to=\"closed\"}}"), 1.0),
        (&format!("kasmina_breaker_refused_total{{{urza}}}"), 7.0),
        (&format!("kasmina_breaker_retry_after_seconds{{{urza}}}"), 1.5),
        ("kasmina_breaker_retry_after_seconds{dependency=\"redis\"}", 0.0),
        ("kasmina_breaker_state{dependency=\"redis\",state=\"closed\"}", 1.0),
        ("kasmina_cache_hits_total{tier=\"device\"}", 11.0),
        ("kasmina_cache_misses_total{tier=\"redis\"}", 4.0),
        ("kasmina_cache_bytes{tier=\"device\"}", 4096.0),
        ("kasmina_cache_lookups_total{outcome=\"joined\"}", 63.0),
        ("kasmina_cache_stale_total", 1.0),
        ("kasmina_offers_total{result=\"taken_in\"}", 3.0),
        ("kasmina_offers_total{result=\"known\"}", 4.0),
        ("kasmina_offers_total{result=\"refused\"}", 2.0),
        ("kasmina_offers_total{result=\"failed\"}", 1.0),
        ("kasmina_pass_plans_total", 6.0),
        ("kasmina_cache_overruns_total", 3.0),
        ("kasmina_cache_fetching_bytes{from=\"origin\"}", 12.0),
        ("kasmina_cache_fetching_limit_bytes{from=\"origin\"}", 34.0),
        ("kasmina_cache_fetches_waiting{from=\"origin\"}", 5.0),
        ("kasmina_cache_fetches_refused_total{from=\"origin\"}", 6.0),
        ("kasmina_seed_transitions_total{from=\"loading\",to=\"blending\"}", 4.0),
        ("kasmina_events_lost_total", 3.0),
        ("kasmina_route_bypassed{tier=\"redis\",size_class=\"64KiB\"}", 1.0),
        ("kasmina_route_bypasses_total{tier=\"redis\",size_class=\"larger\"}", 6.0),
        ("kasmina_route_hit_mean_seconds{tier=\"redis\",size_class=\"larger\"}", 0.0025),
        ("kasmina_fleet_listening", 1.0),
        ("kasmina_warming_loaded", 2.0),
        ("kasmina_sessions", 2.0),
        ("kasmina_layers", 6.0),
        ("kasmina_saved_bytes", 14.0),
        ("kasmina_sessions_opened_total", 9.0),
        ("kasmina_passes_total{direction=\"forward\"}", 20.0),
        ("kasmina_compute_seconds_total", 2.5),
        ("kasmina_turn_wait_seconds_total", 1.25),
        ("kasmina_turn_places", 4.0),
        ("kasmina_passes_running", 3.0),
        ("kasmina_passes_waiting", 2.0),
        ("kasmina_failure_records_total", 7.0),
        ("kasmina_device_memory_bytes{device=\"cuda:0\",state=\"budget\"}", 9000.0),
        ("kasmina_device_memory_bytes{device=\"cuda:0\",state=\"used\"}", 700.0),
        ("kasmina_device_memory_bytes{device=\"cuda:1\",state=\"budget\"}", 8000.0),
        ("kasmina_device_sessions{device=\"cuda:0\"}", 2.0),
        ("kasmina_device_sessions{device=\"cuda:1\"}", 0.0),
        ("kasmina_failure_records_dropped_total{reason=\"full\"}", 5.0),
        ("kasmina_actor_restarts_total{actor=\"validator\"}", 2.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name} in\n{plain}");
    }
    assert!(!series.contains_key("kasmina_cache_bytes{tier=\"redis\"}"), "it does not say what it holds");
}

#[test]
fn promtool_finds_nothing_wrong() {
    let tool = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let spawned = Command::new(&tool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut checker) = spawned else {
        println!("skipped: no promtool (Debian has it in the package prometheus)");
        return;
    };
    checker.stdin.take().unwrap().write_all(page(Form::Prometheus).as_bytes()).unwrap();
    let done = checker.wait_with_output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    assert!(done.status.success() && told.is_empty(), "{}", String::from_utf8_lossy(&told));
}

/// Answers at once, after a while of virtual time, or never.
#[derive(Debug)]
struct Canned {
    status_after: Option<Duration>,
    cache_after: Option<Duration>,
    scrapes: AtomicUsize,
    most_scrapes: AtomicUsize,
}

impl Canned {
    fn new(status_after: Option<Duration>, cache_after: Option<Duration>) -> Arc<Self> {
        let (scrapes, most_scrapes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { status_after, cache_after, scrapes, most_scrapes })
    }
}

async fn after<T>(delay: Option<Duration>, answer: T) -> Result<T, AskError> {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => pending().await,
    }
    Ok(answer)
}

impl Reports for Canned {
    fn ping(&self) -> BoxFuture<'_, Result<(), AskError>> {
        Box::pin(after(self.status_after, ()))
    }

    fn status(&self) -> BoxFuture<'_, Result<StatusReport, AskError>> {
        Box::pin(async {
            let now = self.scrapes.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_scrapes.fetch_max(now, Ordering::SeqCst);
            let answer = after(self.status_after, status()).await;
            self.scrapes.fetch_sub(1, Ordering::SeqCst);
            answer
        })
    }

    fn cache(&self, _: Duration) -> BoxFuture<'_, Result<CacheReport, AskError>> {
        Box::pin(after(self.cache_after, cache()))
    }
}

fn probe(reports: Arc<dyn Reports>, ready: fn() -> bool) -> Probe {
    Probe { reports, phase: || "draining", ready }
}

async fn get(probe: &Probe, path: &str, accept: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty()).unwrap();
    let response = TowerToHyperService::new(router(probe.clone())).call(request).await.unwrap();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
}

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

#[tokio::test(start_paused = true)]
async fn each_page_says_what_it_is_for() {
    let serving = probe(Canned::new(AT_ONCE, AT_ONCE), || true);
    let (status, kind, text) = get(&serving, "/metrics", "*/*").await;
    assert_eq!((status, kind.as_str()), (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(parse(&text)["kasmina_scrape_complete"], 1.0);
    let (_, kind, text) =
        get(&serving, "/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(kind.starts_with("application/openmetrics-text") && text.ends_with("# EOF\n"), "{kind}");
    assert_eq!(get(&serving, "/livez", "*/*").await.0, StatusCode::OK);
    assert_eq!(get(&serving, "/readyz", "*/*").await.0, StatusCode::OK);
    assert_eq!(get(&serving, "/", "*/*").await.0, StatusCode::NOT_FOUND);
    let leaving = probe(Canned::new(AT_ONCE, AT_ONCE), || false);
    let (status, _, text) = get(&leaving, "/readyz", "*/*").await;
    assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "draining\n"));
    assert_eq!(get(&leaving, "/livez", "*/*").await.0, StatusCode::OK);
    assert!(get(&leaving, "/metrics", "*/*").await.2.contains("\nkasmina_ready 0\n"));
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_does_not_answer_is_told_of_in_time() {
    let hanging = probe(Canned::new(None, AT_ONCE), || true);
    let asked = tokio::time::Instant::now();
    for (path, seconds) in [("/metrics", 5), ("/livez", 2)] {
        let (status, _, text) = get(&hanging, path, "*/*").await;
        let expected = format!("the supervisor has not answered in {seconds} s\n");
        assert_eq!((status, text), (StatusCode::SERVICE_UNAVAILABLE, expected));
    }
    assert_eq!(asked.elapsed().as_secs(), 7, "of virtual time");
    // Breakers and sessions are told even where the cache is stuck.
    let (status, _, text) = get(&probe(Canned::new(AT_ONCE, None), || true), "/metrics", "*/*").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.contains("\nkasmina_scrape_complete 0\n") && text.contains("\nkasmina_breaker_state{"),
        "{text}"
    );
    assert!(!text.contains("kasmina_cache_"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn sixteen_are_served_at_a_time_and_the_rest_wait() {
    let reports = Canned::new(Some(Duration::from_secs(1)), AT_ONCE);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
            client
        })
        .collect();
    listener.set_nonblocking(true).unwrap();
    let accepting = Accepting::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
    let served = accept(accepting, router(probe(reports.clone(), || true)));
    // Virtual time passes only while nothing else is left to do.
    assert!(tokio::time::timeout(Duration::from_secs(60), served).await.is_err());
    assert_eq!(reports.most_scrapes.load(Ordering::SeqCst), 16);
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close"),
            "{answer}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_request_is_shown_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = |text: &[u8]| {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(text).unwrap();
        client
    };
    let long = [b"GET /metrics HTTP/1.1\r\nLong: ".as_slice(), &[b'a'; 100_000]].concat();
    let clients =
        [connect(b""), connect(b"GET /met"), connect(&long), connect(b"\x16\x03\x01 no HTTP\r\n\r\n")];
    listener.set_nonblocking(true).unwrap();
    let accepting = Accepting::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
    let served = accept(accepting, router(probe(Canned::new(AT_ONCE, AT_ONCE), || true)));
    // Below the limit of a connection, so that it is the head's that ends them.
    assert!(tokio::time::timeout(Duration::from_secs(10), served).await.is_err());
    for mut client in clients {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = Vec::new();
        // Closed with bytes unread is a reset, which is an end too.
        if let Err(error) = client.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
}
