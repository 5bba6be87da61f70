-- Who events belong to.
--
-- `identified` tells whether anything was known of the person when the event came. What was learnt later is in
-- person_aliases: persons who turned out to be somebody else. Reports put the one in the other's place (a row whose
-- `person` is the alias itself means that it is nobody else after all), until the events were rewritten for good.

ALTER TABLE events ADD COLUMN IF NOT EXISTS identified Bool AFTER person_id;

CREATE TABLE IF NOT EXISTS person_aliases
(
    app_id         UUID,
    alias          UUID,
    person         UUID,
    version        UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (app_id, alias)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
    non_replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

-- One person's events, without reading everybody's: of 8,192 rows those are read that may hold the id.
ALTER TABLE events ADD INDEX IF NOT EXISTS person_id person_id TYPE bloom_filter(0.01) GRANULARITY 1;

-- What a list of people sorts by, kept up by the engine whatever happens to the events. Revenue is read from the events
-- themselves: a map of sums takes three times the time to write and to read, and most events have none.
ALTER TABLE events ADD PROJECTION IF NOT EXISTS people
(
    SELECT app_id, person_id, max(identified), min(received_at), max(received_at), count()
    GROUP BY app_id, person_id
);

-- Each custom value of each person whom something is known of; of a field the newest counts. `value` is JSON text, `null`
-- too. `version` orders them: the time in ms, and among those of one ms the id.
CREATE TABLE IF NOT EXISTS person_properties
(
    app_id         UUID,
    field          String,
    person_id      UUID,
    value          String,
    received_at    DateTime64(3, 'UTC'),
    version        UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (app_id, field, person_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS properties_of_events TO person_properties AS
SELECT
    app_id, property.1 AS field, person_id, ifNull(toJSONString(property.2), 'null') AS value, received_at,
    toUInt64(toUnixTimestamp64Milli(received_at)) * 1048576 + cityHash64(id) % 1048576 AS version
FROM events
ARRAY JOIN JSONExtract(params_text, 'Map(String, Dynamic)') AS property
WHERE identified;
