-- Committed comparisons, kept in memory. Two revisions of a model count as two models; `again` says that the same two models were
-- compared more than once, so that results may be superseded.
create table files.comparing as
select
    comparisons.pair_id,
    comparisons.base_model,
    comparisons.tuned_model,
    before.revision as base_revision,
    after.revision as tuned_revision,
    comparisons.finished_at,
    comparisons.matrices,
    dense_rank() over (
        order by comparisons.base_model, comparisons.tuned_model, before.revision, after.revision
    ) as model_pair,
    count(*) over (
        partition by comparisons.base_model, comparisons.tuned_model, before.revision, after.revision
    ) > 1 as again
from comparisons
left join scans as before on before.scan_id = comparisons.base_scan_id
left join scans as after on after.scan_id = comparisons.tuned_scan_id;

create view files.compared_again as
select pair_id
from files.comparing
where again
order by pair_id;

-- Compared pairs of models, by number.
create table files.model_pairs as
select distinct
    model_pair,
    base_model,
    tuned_model,
    left(base_revision, 12) as base_revision,
    left(tuned_revision, 12) as tuned_revision
from files.comparing;
