-- title: Releases on the Hub that nightly scans have seen, each in its newest state
-- about: A release is a commit of a model. It waits until it fits into the budget of a night, is planned while a night runs
--   (or after a night that was killed, until the same command continues it), and ends as scanned, failed or skipped; reason
--   says why. A release that failed is tried again in later nights, up to a limit, and waits meanwhile. The newest change
--   comes first.
-- param: state VARCHAR = NULL | in this state only: waiting, planned, scanned, failed or skipped
-- param: night VARCHAR = NULL | releases whose newest state is from this night only
-- param: repository VARCHAR = NULL | this repository only
-- column: night_id | night of this state
-- column: watch_id | what was watched: hash of section watch of the config
-- column: repository | name of the repository
-- column: commit | commit of the release
-- column: branch | branch or tag, for a repository that the config names with one
-- column: state | waiting, planned, scanned, failed or skipped
-- column: reason | why it waits, failed or was skipped
-- column: attempts | nights in which it was tried and failed
-- column: first_seen_at [UTC] | when it was listed first
-- column: updated_at [UTC] | when this state was recorded
-- column: last_modified [UTC] | time of the change, according to the Hub
-- column: parameters | number of parameters, according to the Hub
-- column: bytes | expected size of the weights, bytes
-- column: expected_seconds | expected duration of scan and comparison, s
-- column: task | task of the model
-- column: library | library of the model
-- column: license | license
-- column: gated | auto or manual if its terms have to be accepted
-- column: downloads | downloads of the last month when it was listed
-- column: base_model | model that it was fine-tuned from
-- column: base_commit | commit of the base that it was compared with
-- column: scan_id | its scan
-- column: pair_id | its comparison with the base
-- column: matrices | number of analyzed matrices
-- column: failed_tensors | number of tensors that could not be analyzed
-- show: repository, state, parameters, downloads, last_modified, attempts, reason
with newest as (
    select *
    from releases
    where $repository is null or repository = $repository
    qualify
        row_number() over (
            partition by repository, "commit"
            order by updated_at desc nulls last, night_id desc
        ) = 1
)

select *
from newest
where ($state is null or state = $state) and ($night is null or night_id = $night)
order by last_modified desc nulls last, repository, "commit";
