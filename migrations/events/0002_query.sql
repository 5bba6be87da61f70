-- The query string of an event as it came, so that the live view can show the raw hit beside what it was decoded to.
--
-- Scrubbed as a rejection's is. Emptied after two days by `onepx serve` (tenants/erasures.py), not by a TTL: a TTL
-- rewrites all columns of a month's largest part every few hours, a mutation only this one, in a twentieth of the time.
-- Events stored before have an empty one.

ALTER TABLE events ADD COLUMN IF NOT EXISTS query String CODEC(ZSTD(3)) AFTER params;
