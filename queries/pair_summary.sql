-- title: Change by fine-tuning, by role
-- about: One row per role of every compared pair of models. Outliers are means per matrix before and after. A random change has
--   p 0.5 (delta_p), and as many directions as the matrix (delta_rank close to min(rows, cols)).
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: role | role of the matrix in its block
-- column: matrices | number of pairs of this role
-- column: identical | number of these that are equal bit by bit
-- column: change_median | relative change |W_tuned - W_base| / |W_base|, median over the matrices
-- column: change_max | largest relative change
-- column: largest_in | block of the largest change; NULL outside blocks
-- column: below_base | singular values below the bulk before, mean
-- column: below_tuned | singular values below the bulk after, mean
-- column: above_base | singular values above the bulk before, mean
-- column: above_tuned | singular values above the bulk after, mean
-- column: intruders | intruder dimensions, sum over the matrices
-- column: delta_rank | effective rank of the change, mean
-- column: delta_above | singular values of the change above its bulk, mean
-- column: delta_p | mean p-value of the singular vectors of the change, both sides
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, role, matrices, identical, change_median, change_max, below = below_base -> below_tuned,
--   above = above_base -> above_tuned, intruders, delta_p
-- total of one model: matrices, identical, intruders
select
    model_pairs.base_model,
    model_pairs.tuned_model,
    role,
    count(*)::integer as matrices,
    (count(*) filter (where identical))::integer as identical,
    median(relative_change) as change_median,
    max(relative_change) as change_max,
    arg_max(layer, relative_change) as largest_in,
    avg(outliers_left_base) as below_base,
    avg(outliers_left_tuned) as below_tuned,
    avg(outliers_right_base) as above_base,
    avg(outliers_right_tuned) as above_tuned,
    sum(intruders)::integer as intruders,
    avg(delta_effective_rank) as delta_rank,
    avg(delta_outliers_right) as delta_above,
    avg((delta_u_p_mean + delta_v_p_mean) / 2) as delta_p,
    base_revision,
    tuned_revision
from chosen_pairs($base, $tuned, $pair_id) as pairs
join files.model_pairs using (model_pair)
where (head is not null) = $heads
group by model_pair, model_pairs.base_model, model_pairs.tuned_model, base_revision, tuned_revision, role
order by model_pairs.base_model, model_pairs.tuned_model, model_pair, role_order(role), role;
