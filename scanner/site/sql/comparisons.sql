-- Compared pairs of models, the one that was compared last first; several comparisons of one pair have one row.
select
    base_model,
    tuned_model,
    list(pair_id order by pair_id) as pairs
from comparisons
group by base_model, tuned_model
order by max(finished_at) desc nulls last, base_model, tuned_model;
