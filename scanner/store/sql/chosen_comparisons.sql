-- Comparisons with a newest result of the selected pairs of models (null: all), or one selected comparison.
-- `semi join chosen_comparisons($base, $tuned) using (pair_id)`.
create macro chosen_comparisons(wanted_base, wanted_tuned, wanted_pair := null) as table
select pair_id, model_pair
from files.compared
where
    (wanted_base is null or base_model = wanted_base)
    and (wanted_tuned is null or tuned_model = wanted_tuned)
    and case when wanted_pair is null then not superseded else pair_id = wanted_pair end;

-- The newest results of the selected pairs of models, or all results of one comparison, with the number of the pair of models:
-- `join files.model_pairs using (model_pair)` gives its names. The condition on pair_id is pushed down to READ_PARQUET, so that row
-- groups of other pairs are skipped.
create macro chosen_results(all_results, wanted_base, wanted_tuned, wanted_pair) as table
select result.*, chosen.model_pair
from query_table(all_results) as result
join chosen_comparisons(wanted_base, wanted_tuned, wanted_pair) as chosen using (pair_id)
anti join (from files.superseded_pairs where wanted_pair is null) as old
    on old.pair_id = result.pair_id and same_pair(old, result);
