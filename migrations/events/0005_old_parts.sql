-- What a merge or a mutation replaced stays two minutes more, in case the power goes.
--
-- An insert is synced before it is acknowledged; what a merge writes is not, and its sources are the only safe copy until
-- the kernel has written it, which it does within 30 s. ClickHouse servers keep them for 480 s, the embedded engine for none.
-- Two minutes, not eight: that long what was erased can still be found on the disk.

ALTER TABLE events MODIFY SETTING old_parts_lifetime = 120;
ALTER TABLE rejections MODIFY SETTING old_parts_lifetime = 120;
ALTER TABLE traffic MODIFY SETTING old_parts_lifetime = 120;
ALTER TABLE person_aliases MODIFY SETTING old_parts_lifetime = 120;
ALTER TABLE person_properties MODIFY SETTING old_parts_lifetime = 120;
