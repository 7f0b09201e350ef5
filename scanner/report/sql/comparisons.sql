-- Compared pairs of models; among pairs of the same names, the one that was compared last first. A pair with several comparisons has
-- one row, that of the comparison with the most matrices.
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
