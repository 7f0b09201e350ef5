-- title: Accuracy of rich and lazy networks without some of their singular values
-- about: One line per network and set of removed singular values, averaged over the seeds (appendix A and Fig. 9 of arXiv
--   2410.17770v1). A rich network does without its small singular values, a lazy one does not.
-- param: runs VARCHAR = NULL | only these runs (run_id, separated by commas)
-- param: percent DOUBLE = NULL | only sets of this many per cent
-- column: dataset | what the networks learned
-- column: model | the network, its alpha and its frozen layers
-- column: ordering | smallest: by number; mass: by share of the sum of the singular values; random: as many as smallest
-- column: percent | how much of the number (mass: of the sum) of each hidden matrix's singular values was removed
-- column: fraction | removed singular values as a fraction of all
-- column: networks | how many seeds
-- column: baseline | mean accuracy of the intact networks
-- column: value | mean accuracy without the set
-- column: delta | mean change
-- column: spread | standard deviation of the change over the seeds
with points as (
    select
        a.*,
        split_part(a.set, ':', 1) as ordering,
        try_cast(rtrim(split_part(a.set, ':', 2), '%') as double) as percent
    from ablations as a
    semi join experiments as e on a.run_id = e.run_id and e.kind = 'lazy_learning'
    where $runs is null or list_contains(string_split($runs, ','), a.run_id)
)

select
    dataset,
    model,
    ordering,
    percent,
    avg(fraction) as fraction,
    count(*) as networks,
    avg(baseline) as baseline,
    avg(value) as value,
    avg(delta) as delta,
    stddev_samp(delta) as spread
from points
where $percent is null or percent = $percent
group by dataset, model, ordering, percent
order by dataset, model, ordering, percent;
