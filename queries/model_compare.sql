-- title: Models side by side: one measure, role by role
-- about: One row per model, the lowest overall value first; with a and b, two models. The result is empty if one of them is not
--   scanned. Differences (delta:BASE..TUNED) are left out unless named. Means are over the matrices of a role, whatever their shape.
--   differs_in is the role in which a model is farthest from the mean of the other models, and differs_by how far: the difference if
--   there are two. `model_roles` has all measures at once.
-- param: a MODEL = NULL | compare this model with b
-- param: b MODEL = NULL | compare this model with a
-- param: measure VARCHAR = p | p (mean p-value of both sides), u_p, v_p, p_scale (under the scale null), below_percent and above_percent
--   (singular values outside the bulk), mp_ks, stable_rank, stable_rank_percent, effective_rank_percent or spectral_norm
-- param: revision VARCHAR = NULL | the newest revision of each model that begins with this, instead of the newest
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: matrices | number of matrices
-- column: overall | mean over all matrices
-- column: query | mean over the query matrices
-- column: key | mean over the key matrices
-- column: value | mean over the value matrices
-- column: attn_out | mean over the output matrices of attention
-- column: mlp_up | mean over the up-projections
-- column: mlp_gate | mean over the gates
-- column: mlp_down | mean over the down-projections
-- column: other | mean over all other matrices (embedding, lm_head, router, other)
-- column: differs_in | role in which the model is farthest from the mean of the others; NULL for a single model
-- column: differs_by | its value minus that mean
-- show: model, overall, query, key, value, attn_out, mlp_up, mlp_gate, mlp_down, other, differs_in, differs_by
with chosen as (
    select
        *,
        role_column(role) as place
    from matrices
    semi join (
        from chosen_scans(coalesce($a, $b), $revision)
        union
        from chosen_scans(coalesce($b, $a), $revision)
    ) using (scan_id)
    where (head is not null) = $heads and role not in ('qk', 'ov')
),

cells as (
    select
        model,
        place,
        count(*)::integer as matrices,
        measured(chosen, $measure) as measured
    from chosen
    group by grouping sets ((model), (model, place))
),

apart as (
    select
        *,
        case
            when place is not null and count(measured) over of_place > 1
                then measured - (sum(measured) over of_place - measured) / (count(measured) over of_place - 1)
        end as distance
    from cells
    window of_place as (partition by place)
),

models as (
    select
        model,
        max(matrices) as matrices,
        max(measured) filter (where place is null) as overall,
        max(measured) filter (where place = 'query') as query,
        max(measured) filter (where place = 'key') as key,
        max(measured) filter (where place = 'value') as value,
        max(measured) filter (where place = 'attn_out') as attn_out,
        max(measured) filter (where place = 'mlp_up') as mlp_up,
        max(measured) filter (where place = 'mlp_gate') as mlp_gate,
        max(measured) filter (where place = 'mlp_down') as mlp_down,
        max(measured) filter (where place = 'other') as other,
        -- Of several at the same distance, up to rounding, the first in the order of the columns.
        arg_max(place, {'far': round(abs(distance), 12), 'place': -role_order(place)})
            filter (where distance is not null) as differs_in,
        arg_max(distance, {'far': round(abs(distance), 12), 'place': -role_order(place)})
            filter (where distance is not null) as differs_by
    from apart
    group by model
)

from models
where $a is null or $b is null or $a = $b or (select count(*) from models) = 2
order by overall nulls last, model;
