-- title: Scale or direction: how much of the deviation of the singular vectors is row and column scale
-- about: Mean p-values of the singular vectors at the small end (decile 1, the smallest tenth of the singular values of each
--   matrix), in the middle (deciles 2 to 9) and at the large end (decile 10), under two hypotheses. p tests against independent
--   entries of one variance, p_scale against independent entries with the row and column variances of the matrix (the scale null).
--   Random vectors have a mean of 0.5 under both. The deviation from independent entries, 0.5 - p, is the sum of scale,
--   p_scale - p, which unequal rows and columns explain, and direction, 0.5 - p_scale, which they do not.
--   z = (p - 0.5) sqrt(12 vectors), and z_scale likewise. differs_by says what is left at the smallest |z| that counts: direction
--   if |z_scale| reaches it, scale if only |z| does, nothing otherwise. Only vectors with both p-values count; scans without a scale
--   null are left out.
-- param: model VARCHAR = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: layers BOOLEAN = TRUE | one row per layer; if false, one row for all layers of a role
-- param: z DOUBLE = 4 | smallest |z| that counts as a deviation, in standard errors of random vectors
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks, and if all layers are in one row
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: part | small end, middle or large end of the spectrum
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: matrices | number of matrices
-- column: vectors | number of singular vectors
-- column: p | mean p-value against independent entries of one variance
-- column: p_scale | mean p-value against the scale null
-- column: scale | p_scale - p: the part of the deviation that row and column variances explain
-- column: direction | 0.5 - p_scale: the part that they do not explain
-- column: z | deviation of p from 0.5 in standard errors of random vectors
-- column: z_scale | the same of p_scale
-- column: differs_by | nothing, scale or direction
with measured as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        case (10 * k) // least(rows, cols) when 9 then 'small end' when 0 then 'large end' else 'middle' end as part,
        count(distinct (scan_id, tensor, head, expert)) as matrices,
        count(u_p) filter (where u_p_scale is not null) as u_vectors,
        avg(u_p) filter (where u_p_scale is not null) as u_p,
        avg(u_p_scale) filter (where u_p is not null) as u_p_scale,
        count(v_p) filter (where v_p_scale is not null) as v_vectors,
        avg(v_p) filter (where v_p_scale is not null) as v_p,
        avg(v_p_scale) filter (where v_p is not null) as v_p_scale
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        ($role is null or role = $role)
        and (head is not null) = $heads and role not in ('qk', 'ov')
    group by all
),

sides as (
    select
        model,
        stack,
        layer,
        role,
        module,
        part,
        side,
        matrices,
        case side when 'u' then u_vectors else v_vectors end as vectors,
        case side when 'u' then u_p else v_p end as p,
        case side when 'u' then u_p_scale else v_p_scale end as p_scale
    from measured
    cross join (values ('v'), ('u')) as both_sides (side)
),

compared as (
    select
        *,
        (p - 0.5) * sqrt(12 * vectors) as deviation,
        (p_scale - 0.5) * sqrt(12 * vectors) as left_deviation
    from sides
    where vectors > 0
)

select
    model,
    stack,
    layer,
    role,
    module,
    part,
    side,
    matrices::integer as matrices,
    vectors::integer as vectors,
    p,
    p_scale,
    p_scale - p as scale,
    0.5 - p_scale as direction,
    deviation as z,
    left_deviation as z_scale,
    case
        when abs(left_deviation) >= $z then 'direction'
        when abs(deviation) >= $z then 'scale'
        else 'nothing'
    end as differs_by
from compared
order by
    model,
    stack desc nulls first,
    layer nulls last,
    role_order(role),
    role,
    module nulls first,
    case part when 'small end' then 1 when 'middle' then 2 else 3 end,
    side desc;
