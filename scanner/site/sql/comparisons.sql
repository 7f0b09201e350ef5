-- Compared pairs of models, the one that was compared last first; several comparisons of one pair have one row.
select
    base_model,
    tuned_model,
    list(pair_id order by pair_id) as pairs,
    list_sort(list_distinct(list(base_scan_id) || list(tuned_scan_id))) as scans,
    sum(matrices)::bigint as matrices
from comparisons
group by base_model, tuned_model
order by max(finished_at) desc nulls last, base_model, tuned_model;
