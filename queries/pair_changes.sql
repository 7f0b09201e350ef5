-- title: How much fine-tuning changed each matrix
-- about: One row per pair of matrices, in the order of the model. The relative change is |W_tuned - W_base| / |W_base|
--   (Frobenius norms). Intruders are those of the ten largest tuned left vectors whose overlap with every base vector is
--   below 0.5. An outlier is gained if its most similar base vector (on the side with the larger overlap) is not an
--   outlier on the same side of the bulk, or if that overlap is below 0.5; a base outlier is lost if it is not the match
--   of any tuned outlier in this sense. The columns delta_ describe the difference W_tuned - W_base itself: a random
--   difference has p 0.5 and no outliers.
-- param: base MODEL = NULL | pairs with this pretrained model only
-- param: tuned MODEL = NULL | pairs with this fine-tuned model only
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: pair_id VARCHAR = NULL | this comparison only, with all of its results, even if a later comparison has newer ones
-- column: base_model | the pretrained model
-- column: tuned_model | the fine-tuned model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: role | role of the matrix in its block
-- column: head | index of the head, with heads
-- column: expert | index of the expert, if there are several
-- column: tensor | name of the tuned tensor
-- column: relative_change | Frobenius norm of the change over that of the base matrix
-- column: cosine | cosine of the angle between both matrices as vectors
-- column: identical | whether both are equal bit by bit
-- column: below_base | singular values below the bulk before
-- column: below_tuned | singular values below the bulk after
-- column: above_base | singular values above the bulk before
-- column: above_tuned | singular values above the bulk after
-- column: below_gained | singular values below the bulk that were not outliers before
-- column: below_lost | singular values below the bulk before that are no longer outliers
-- column: above_gained | singular values above the bulk that were not outliers before
-- column: above_lost | singular values above the bulk before that are no longer outliers
-- column: intruders | intruder dimensions among the ten largest tuned left vectors
-- column: delta_effective_rank | effective rank of the change
-- column: delta_above | singular values of the change above its bulk
-- column: delta_u_p | left singular vectors of the change: mean p-value
-- column: delta_v_p | right singular vectors of the change: mean p-value
-- column: base_revision | revision of the pretrained model, first 12 characters
-- column: tuned_revision | revision of the fine-tuned model, first 12 characters
-- show: base_model, tuned_model, stack, layer, role, head, expert, relative_change, below = below_base -> below_tuned,
--   above = above_base -> above_tuned, intruders, delta_effective_rank, delta_above
-- total of one model: intruders
with changes as (
    from chosen_pairs($base, $tuned, $pair_id)
    where ($role is null or role = $role) and (head is not null) = $heads
),

triplets as (
    select
        pair_id,
        base_tensor,
        role,
        head,
        expert,
        k,
        coalesce(u_p_base, v_p_base) is not null as in_base,
        coalesce(u_p_tuned, v_p_tuned) is not null as in_tuned,
        greatest(u_overlap, v_overlap) as overlap,
        if(u_overlap >= v_overlap, u_match, coalesce(v_match, u_match)) as match
    from chosen_pair_vectors($base, $tuned, $pair_id)
    where ($role is null or role = $role) and (head is not null) = $heads
),

-- Rank 0 is the largest singular value. Numerically zero ones have no p-value and are not outliers.
ranks as (
    select
        pair_id,
        base_tensor,
        role,
        head,
        expert,
        count(*) filter (where in_base) as rank_base,
        count(*) filter (where in_tuned) as rank_tuned,
        count(overlap) > 0 as compared
    from triplets
    group by all
),

known as (
    select
        changes.*,
        rank_base,
        rank_tuned,
        rank_base - outliers_left_base as left_from_base,
        rank_tuned - outliers_left_tuned as left_from_tuned
    from changes
    join ranks
        on ranks.pair_id = changes.pair_id and same_pair(ranks, changes)
    where compared
),

outliers as (
    select
        known.pair_id,
        known.base_tensor,
        known.role,
        known.head,
        known.expert,
        k < outliers_right_tuned as is_right,
        k >= left_from_tuned and k < rank_tuned as is_left,
        case when overlap >= 0.5 and match < outliers_right_base then match end as right_before,
        case when overlap >= 0.5 and match >= left_from_base and match < rank_base then match end as left_before
    from triplets
    join known
        on known.pair_id = triplets.pair_id and same_pair(known, triplets)
),

matched as (
    select
        pair_id,
        base_tensor,
        role,
        head,
        expert,
        count(*) filter (where is_left and left_before is null) as left_gained,
        count(distinct left_before) filter (where is_left) as left_kept,
        count(*) filter (where is_right and right_before is null) as right_gained,
        count(distinct right_before) filter (where is_right) as right_kept
    from outliers
    group by all
)

select
    model_pairs.base_model,
    model_pairs.tuned_model,
    stack,
    layer,
    changes.role,
    changes.head,
    changes.expert,
    tuned_tensor as tensor,
    relative_change,
    cosine,
    identical,
    outliers_left_base as below_base,
    outliers_left_tuned as below_tuned,
    outliers_right_base as above_base,
    outliers_right_tuned as above_tuned,
    left_gained::integer as below_gained,
    (outliers_left_base - left_kept)::integer as below_lost,
    right_gained::integer as above_gained,
    (outliers_right_base - right_kept)::integer as above_lost,
    intruders,
    delta_effective_rank,
    delta_outliers_right as delta_above,
    delta_u_p_mean as delta_u_p,
    delta_v_p_mean as delta_v_p,
    base_revision,
    tuned_revision
from changes
join files.model_pairs using (model_pair)
left join matched
    on matched.pair_id = changes.pair_id and same_pair(matched, changes)
order by
    model_pairs.base_model,
    model_pairs.tuned_model,
    model_pair,
    stack desc nulls first,
    layer nulls last,
    role_order(changes.role),
    changes.role,
    changes.head,
    changes.expert,
    tensor;
