-- A month in which nothing was added or changed for six hours becomes one part.
--
-- Merges stop when parts are large and alike, so a month that is over stays in half a dozen of them for good. Each part's
-- projection `people` has nearly everybody once more: a million people are sorted in two thirds of the time without.

ALTER TABLE events MODIFY SETTING min_age_to_force_merge_seconds = 21600, min_age_to_force_merge_on_partition_only = 1;
