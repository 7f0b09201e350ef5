-- title: Intruder dimensions: large singular vectors that the pretrained model does not have
-- about: An intruder is one of the top tuned left singular vectors whose largest overlap with any base vector is below
--   threshold. One line per matrix that has intruders, most of them first; a matrix without any has no line. Full
--   fine-tuning makes few, low-rank adapters make many.
-- param: base VARCHAR = NULL | only pairs with this pretrained model
-- param: tuned VARCHAR = NULL | only pairs with this fine-tuned model
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- param: top INTEGER = 10 | so many of the largest singular values are looked at
-- param: threshold DOUBLE = 0.5 | an overlap |u . u_base| below this makes an intruder
-- param: pair_id VARCHAR = NULL | only this comparison, whole, even where a later one has newer results
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: stack | encoder or decoder where the model has both
-- column: layer | index of the block; empty outside blocks
-- column: role | what the matrix does in its block
-- column: module | cross_attention and the like, where one role stands twice in a block
-- column: head | index of the head
-- column: expert | index of the expert
-- column: tensor | name of the weight in the pretrained checkpoint
-- column: intruders | how many there are
-- column: examined | among so many vectors
-- column: ranks | their ranks k, 0 = largest singular value
-- column: smallest_overlap | of the intruder that is least like any base vector
-- column: u_p | mean p-value of the intruders' left vectors
-- column: relative_change | |W_tuned - W_base| / |W_base|
-- column: right_gained | singular values above the Marchenko-Pastur bulk, after minus before
-- column: base_revision | the pretrained model's revision, the first 12 characters
-- column: tuned_revision | the fine-tuned model's revision, the first 12 characters
with examined as (
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
        outliers_right_tuned - outliers_right_base as right_gained
    from chosen_pairs($base, $tuned, $pair_id)
)

select
    base_model,
    tuned_model,
    examined.stack,
    examined.layer,
    examined.role,
    examined.module,
    examined.head,
    examined.expert,
    examined.base_tensor as tensor,
    examined.intruders,
    examined.examined,
    examined.ranks,
    examined.smallest_overlap,
    examined.u_p,
    changes.relative_change,
    changes.right_gained,
    base_revision,
    tuned_revision
from examined
join files.model_pairs using (model_pair)
left join changes
    on changes.pair_id = examined.pair_id
    and changes.base_tensor = examined.base_tensor
    and changes.role = examined.role
    and changes.head is not distinct from examined.head
    and changes.expert is not distinct from examined.expert
where examined.intruders > 0
order by
    base_model,
    tuned_model,
    model_pair,
    examined.intruders desc,
    examined.smallest_overlap,
    examined.stack desc nulls first,
    examined.layer,
    role_order(examined.role),
    examined.role,
    tensor,
    examined.head,
    examined.expert;
