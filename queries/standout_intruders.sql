-- title: Fine-tunes with many intruder dimensions
-- about: An intruder is one of the ten largest left singular vectors of a tuned matrix whose overlap with every vector of the base
--   is below 0.5. Full fine-tuning produces few, low-rank adapters that were merged produce many. Only comparisons with at least
--   per_matrix intruders per matrix are listed, the highest number first; `pair_intruders` has them by matrix.
-- param: night VARCHAR = NULL | models of the releases that were scanned in this night only
-- param: per_matrix DOUBLE = 0.5 | smallest number of intruders per matrix that is listed
-- column: base_model | the base
-- column: tuned_model | the fine-tune
-- column: intruders | number of intruders
-- column: matrices | number of compared matrices
-- column: per_matrix | intruders per matrix
-- column: relative_change | median of |W_tuned - W_base| / |W_base|
-- show: base_model, tuned_model, intruders, matrices, per_matrix, relative_change
select
    base_model,
    tuned_model,
    sum(intruders)::integer as intruders,
    count(*)::integer as matrices,
    sum(intruders) / count(*) as per_matrix,
    median(relative_change) as relative_change
from pairs
where
    head is null
    and ($night is null or pair_id in (select pair_id from releases where night_id = $night))
group by pair_id, base_model, tuned_model
having sum(intruders) / count(*) >= $per_matrix
order by sum(intruders) / count(*) desc, base_model, tuned_model;
