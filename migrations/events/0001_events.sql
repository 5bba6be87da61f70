-- Events, rejections and traffic counters: what hits became.
--
-- The same statements run on the embedded engine and on a ClickHouse server; each ends with a semicolon at the end of a line.
-- A digest batch is inserted under a deduplication token, so a batch inserted again after a crash changes nothing:
-- the windows say how many tokens are remembered, and on a replicated server for how long (a week).
-- fsync_*: an insert that was acknowledged survives a power cut. The journal drops hits only after that.

CREATE TABLE IF NOT EXISTS events
(
    app_id         UUID,
    received_at    DateTime64(3, 'UTC'),
    id             UUID,
    category       LowCardinality(String),
    event_token    LowCardinality(String),
    amount         Int64,                                -- minor units of `currency`; 0 on category event
    currency       LowCardinality(String),               -- '' on category event
    event_id       String,
    params_text    String CODEC(ZSTD(3)),                -- the custom values, exactly as they read back
    params         JSON MATERIALIZED params_text,        -- the same, to be queried by field
    warnings       Array(LowCardinality(String)),

    -- Who it was: the identifiers as sent (persons are made of them), and the person they point at.
    visitor_id     UUID,                                 -- all zeros: no cookie was set or read
    person_id      UUID,
    email          String CODEC(ZSTD(3)),
    uuid           String CODEC(ZSTD(3)),
    fbid           String,

    -- What came with the request.
    network        LowCardinality(String),               -- the address cut to /24 or /48
    user_agent     LowCardinality(String),
    referrer_host  LowCardinality(String),
    sec_purpose    LowCardinality(String),

    -- What that tells; filled in later.
    browser        LowCardinality(String),
    os             LowCardinality(String),
    device         LowCardinality(String),
    bot            LowCardinality(String),
    mail_proxy     LowCardinality(String),
    country        LowCardinality(String)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, received_at, id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

CREATE TABLE IF NOT EXISTS rejections
(
    app_id         UUID,
    received_at    DateTime64(3, 'UTC'),
    id             UUID,
    category       LowCardinality(String),
    reason         LowCardinality(String),
    detail         String CODEC(ZSTD(3)),
    query          String CODEC(ZSTD(3))                 -- as sent, without access_token
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (app_id, received_at, id)
TTL toDateTime(received_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

CREATE TABLE IF NOT EXISTS traffic
(
    app_id         UUID,
    minute         DateTime('UTC'),
    recorded       UInt64,
    rejected       UInt64,
    duplicate      UInt64,
    limited        UInt64
)
ENGINE = SummingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (app_id, minute)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;
