-- Names of all models with results: of scans, comparisons and experiments.
select model from scans
union
select unnest([base_model, tuned_model]) from comparisons
union
select model from experiments
union
select model from ablations
union
select model from "overlaps"
union
select base_model from finetunes;
