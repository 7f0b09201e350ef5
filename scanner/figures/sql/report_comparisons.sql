-- The newest comparison of every pair of models.
select *
from comparisons
semi join chosen_comparisons(null, null) using (pair_id)
order by base_model, tuned_model;
