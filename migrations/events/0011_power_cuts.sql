-- What a large merge wrote is synced, and a part that a power cut broke does not keep the store from starting.
--
-- A merge's sources stay for two minutes, and are taken again where its part turns out to be broken. But of more than a
-- gigabyte of broken parts the engine suspects something else, and refuses to start.

ALTER TABLE events MODIFY SETTING min_compressed_bytes_to_fsync_after_merge = 67108864, max_suspicious_broken_parts = 10000,
    max_suspicious_broken_parts_bytes = 1099511627776;
ALTER TABLE rejections MODIFY SETTING min_compressed_bytes_to_fsync_after_merge = 67108864, max_suspicious_broken_parts = 10000,
    max_suspicious_broken_parts_bytes = 1099511627776;
ALTER TABLE traffic MODIFY SETTING max_suspicious_broken_parts = 10000;
ALTER TABLE person_aliases MODIFY SETTING max_suspicious_broken_parts = 10000;
ALTER TABLE person_properties MODIFY SETTING min_compressed_bytes_to_fsync_after_merge = 67108864, max_suspicious_broken_parts = 10000,
    max_suspicious_broken_parts_bytes = 1099511627776;
