-- title: Intruder dimensions: large singular vectors that are absent in the pretrained model
-- about: An intruder is one of the top tuned left singular vectors whose largest overlap with any base vector is below
--   threshold. One row per matrix with intruders, by decreasing number; matrices without intruders are left out. Full
--   fine-tuning produces few intruders, low-rank adapters produce many.
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: top INTEGER = 10 | number of largest singular values to examine
-- param: threshold DOUBLE = 0.5 | overlap |u . u_base| below which a vector is an intruder
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention, if a role occurs twice in a block
-- column: head | index of the head
-- column: expert | index of the expert
-- column: tensor | name of the weight in the pretrained checkpoint
-- column: intruders | number of intruders
-- column: examined | number of examined vectors
-- column: ranks | their ranks k, 0 = largest singular value
-- column: smallest_overlap | overlap of the intruder that is least similar to any base vector
-- column: u_p | mean p-value of the left singular vectors of the intruders
-- column: relative_change | |W_tuned - W_base| / |W_base|
-- column: above_gained | singular values above the Marchenko-Pastur bulk, after minus before
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, stack, layer, role, module, head, expert, intruders, examined, smallest_overlap, u_p,
--   relative_change, ranks
-- total of one model: intruders
with counted as (
    select
        pair_id,
        model_pair,
        base_tensor,
        stack,
        layer,
        role,
        module,
        head,
        expert,
        (count(*) filter (where u_overlap < $threshold))::integer as intruders,
        count(u_overlap)::integer as examined,
        string_agg(k, ', ' order by k) filter (where u_overlap < $threshold) as ranks,
        min(u_overlap) as smallest_overlap,
        avg(u_p_tuned) filter (where u_overlap < $threshold) as u_p
    from chosen_pair_vectors($base, $tuned, $pair_id)
    where k < $top and ($role is null or role = $role) and (head is not null) = $heads
    group by all
),

changes as (
    select
        pair_id,
        base_tensor,
        role,
        head,
        expert,
        relative_change,
        outliers_right_tuned - outliers_right_base as above_gained
    from chosen_pairs($base, $tuned, $pair_id)
)

select
    base_model,
    tuned_model,
    counted.stack,
    counted.layer,
    counted.role,
    counted.module,
    counted.head,
    counted.expert,
    counted.base_tensor as tensor,
    counted.intruders,
    counted.examined,
    counted.ranks,
    counted.smallest_overlap,
    counted.u_p,
    changes.relative_change,
    changes.above_gained,
    base_revision,
    tuned_revision
from counted
join files.model_pairs using (model_pair)
left join changes
    on changes.pair_id = counted.pair_id and same_pair(changes, counted)
where counted.intruders > 0
order by
    base_model,
    tuned_model,
    model_pair,
    counted.intruders desc,
    counted.smallest_overlap,
    counted.stack desc nulls first,
    counted.layer,
    role_order(counted.role),
    counted.role,
    tensor,
    counted.head,
    counted.expert;
