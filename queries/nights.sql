-- title: Nightly scans: what was listed, planned and done
-- about: The newest night comes first. A night is planned while it runs, or after it was killed, until the same command
--   continues it. The watermark is the newest change on the Hub that is recorded; the next night lists what is newer.
-- param: watch VARCHAR = NULL | nights in which this was watched only
-- column: night_id | night: the time of its start, and random digits
-- column: watch_id | what was watched: hash of section watch of the config
-- column: state | planned (running, or interrupted) or done
-- column: started_at [UTC] | start of the night
-- column: finished_at [UTC] | end of its last run
-- column: watermark [UTC] | the newest change on the Hub that is recorded
-- column: listed | models that the Hub listed
-- column: new | releases that were not known before
-- column: planned | releases that were planned
-- column: scanned | releases that were scanned
-- column: failed | releases that failed, those that are tried again included
-- column: skipped | releases that are left out for good
-- column: waiting | releases that wait for a later night
-- column: upgraded | scans of an earlier method that were computed again
-- column: bytes | expected bytes of what was planned
-- column: expected_seconds | expected duration of what was planned, s
-- column: seconds | duration of its runs, s
-- column: problems | what could not be watched, with the reason (JSON)
-- column: failed_upgrades | scans of an earlier method that could not be computed again, with the reason (JSON)
-- column: config | the configuration (JSON)
-- column: scanner_version | version of rmtscan
-- show: state, night_id, listed, new, planned, scanned, failed, skipped, waiting
select *
from nights
where $watch is null or watch_id = $watch
order by started_at desc, night_id desc;
