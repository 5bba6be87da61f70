-- When some people were seen, how often and what they brought, found in one query: events once more, by person.
--
-- Of 51 people on a page of a million the projection `people` reads nearly all granules, since each of its parts has
-- everybody; these are plain columns, in granules an eighth as large. It takes 16 bytes an event on the disk, and a
-- twentieth of the time of an insert. Parts written before get it when they are merged.

ALTER TABLE events ADD PROJECTION IF NOT EXISTS of_person
(
    SELECT app_id, person_id, received_at, currency, amount
    ORDER BY app_id, person_id
) WITH SETTINGS (index_granularity = 1024);
