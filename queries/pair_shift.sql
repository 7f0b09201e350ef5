-- title: Where in the spectrum fine-tuning moved singular values and p-values
-- about: Mean changes at the small end (decile 1, the smallest tenth of the singular values of each matrix), in the middle (deciles
--   2 to 9) and at the large end (decile 10). A singular value changes by tuned / base - 1, in percent; a base value of zero is left
--   out. A p-value, mean of both sides, changes by after minus before: negative is less random. Ranks without a p-value (numerically
--   zero singular values) are left out. A single pair of models has one row per role, several pairs have one row each; by_role
--   chooses. `pair_ranks` has the values of every rank.
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- param: by_role BOOLEAN = NULL | one row per role; if false, one per pair of models; NULL: per role if there is a single pair
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: role | role of the matrix in its block; NULL if all roles are in one row
-- column: matrices | number of pairs of matrices
-- column: s_small [%] | singular values of the small end: mean change
-- column: s_middle [%] | singular values of the middle: mean change
-- column: s_large [%] | singular values of the large end: mean change
-- column: p_base | mean p-value before, over the whole spectrum
-- column: p_tuned | mean p-value after
-- column: p_small | change of the mean p-value at the small end
-- column: p_middle | change of the mean p-value in the middle
-- column: p_large | change of the mean p-value at the large end
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, role, matrices, s_small, s_middle, s_large, p_base, p_small, p_middle, p_large
-- total of one model: matrices
with wanted as (
    select coalesce($by_role, count(distinct model_pair) <= 1) as by_role
    from chosen_pairs($base, $tuned, $pair_id)
),

triplets as (
    select
        model_pair,
        if(by_role, role, null) as role,
        k,
        10 - (10 * k) // least(rows, cols) as decile,
        100 * (singular_value_tuned / nullif(singular_value_base, 0) - 1) as moved,
        (u_p_base + v_p_base) / 2 as before,
        (u_p_tuned + v_p_tuned) / 2 as after
    from chosen_pair_vectors($base, $tuned, $pair_id), wanted
    where ($role is null or role = $role) and (head is not null) = $heads
),

shifts as (
    select
        model_pair,
        role,
        (count(*) filter (where k = 0))::integer as matrices,
        avg(moved) filter (where decile = 1) as s_small,
        avg(moved) filter (where decile between 2 and 9) as s_middle,
        avg(moved) filter (where decile = 10) as s_large,
        avg(before) filter (where after is not null) as p_base,
        avg(after) filter (where before is not null) as p_tuned,
        avg(after - before) filter (where decile = 1) as p_small,
        avg(after - before) filter (where decile between 2 and 9) as p_middle,
        avg(after - before) filter (where decile = 10) as p_large
    from triplets
    group by model_pair, role
)

select
    base_model,
    tuned_model,
    shifts.* exclude (model_pair),
    base_revision,
    tuned_revision
from shifts
join files.model_pairs using (model_pair)
order by base_model, tuned_model, model_pair, role_order(role), role;
