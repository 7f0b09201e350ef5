-- Pairs of models that are compared, the one that was compared last first among those of the same names. A pair that was compared
-- more than once has one line, that of the comparison of the most matrices.
select
    comparisons.*,
    model_pair,
    base_revision,
    tuned_revision
from comparisons
join chosen_comparisons(null, null) using (pair_id)
join files.model_pairs using (model_pair)
qualify row_number() over (partition by model_pair order by matrices desc, finished_at desc nulls last, pair_id) = 1
order by
    comparisons.base_model,
    comparisons.tuned_model,
    max(finished_at) over (partition by model_pair) desc nulls last,
    model_pair;
