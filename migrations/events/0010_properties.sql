-- A person's properties are the values as they were sent.
--
-- Values were read as a map whose values may be anything; the engine takes lists of a block for lists of one type then, and
-- what does not fit became null, whoever had sent the others: ["x",1] was [null,1] behind another app's [1,2]. Nulls in
-- objects were lost, integers above 63 bits became floats. The raw JSON text of each value needs no type.
--
-- Of a person's hits of one millisecond the later counts, not any: `version` ends with where in the journal a hit is, 20 bits
-- of its frame's offset and its number in the frame (tenants/rewriting.py).

ALTER TABLE properties_of_events MODIFY QUERY
SELECT
    app_id, property.1 AS field, person_id, property.2 AS value, received_at,
    toUInt64(toUnixTimestamp64Milli(received_at)) * 1048576
        + toUInt64(bitShiftRight(toUInt128(id), 14) % 67108864 + toUInt128(id) % 16384) % 1048576 AS version
FROM events
ARRAY JOIN JSONExtractKeysAndValuesRaw(params_text) AS property
WHERE identified;

-- Of those that may have been changed, the values as their events still have them, just above the version they had.
INSERT INTO person_properties
SELECT
    app_id, property.1 AS field, person_id, property.2 AS value, received_at,
    toUInt64(toUnixTimestamp64Milli(received_at)) * 1048576 + cityHash64(id) % 1048576 + 1 AS version
FROM events
ARRAY JOIN JSONExtractKeysAndValuesRaw(params_text) AS property
WHERE match(params_text, '\\[|.\\{|[0-9]{16}') AND (app_id, field, person_id) IN (
    SELECT app_id, field, person_id FROM person_properties WHERE match(value, '^(?:[\\[{]|-?[0-9]{16}|null$)')
);
