-- title: What the deviation from independent entries consists of: scale, head structure and direction
-- about: Mean p-values of the singular vectors at the small end (decile 1, the smallest tenth of the singular values of each
--   matrix), in the middle (deciles 2 to 9) and at the large end (decile 10), under three hypotheses, each of which explains more
--   than the one before. p: independent entries of one variance. p_scale: independent entries with the row and column variances
--   of the matrix (the scale null). p_within: the same, given which part of each vector every attention head holds. Random vectors
--   have a mean of 0.5 under all of them. The deviation from independent entries, 0.5 - p, is the sum of scale, p_scale - p, which
--   unequal rows and columns explain; head_structure, p_within - p_scale, which vectors that live in a few heads explain; and
--   direction, which neither explains. Parts can be negative: means above 0.5 are deviations, too.
--   z = (p - 0.5) sqrt(12 vectors), and z_direction likewise of what is left. differs_by says what remains at the smallest |z|
--   that counts: direction if the last hypothesis is rejected, head structure if only the scale null is, scale if only independent
--   entries of one variance are, and nothing otherwise. Only vectors with p and p_scale count; scans without a scale null are left
--   out. outside counts the singular values beyond the edge of the Marchenko-Pastur law at this end, outside_scale those beyond the
--   support of the scale null: what only the first counts is scale.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | one row per attention head, from scans with --heads, instead of whole matrices
-- param: layers BOOLEAN = TRUE | one row per layer (and head); if false, one row for all of a role
-- param: z DOUBLE = 4 | smallest |z| that counts as a deviation, in standard errors of random vectors
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks, and if all layers are in one row
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: head | index of the head; NULL for whole matrices, and if all layers are in one row
-- column: part | small end, middle or large end of the spectrum
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: matrices | number of matrices
-- column: without_scale | matrices that have no scale null, or none that could be fitted (scale_failure of table matrices): left out
-- column: vectors | number of singular vectors
-- column: p | mean p-value against independent entries of one variance
-- column: p_scale | mean p-value against the scale null
-- column: p_within | mean p-value against the scale null, given the part of each head; NULL where this side has no heads
-- column: scale | p_scale - p: the part of the deviation that row and column variances explain
-- column: head_structure | p_within - p_scale: the part that vectors in a few heads explain; NULL where this side has no heads
-- column: direction | 0.5 - p_within (0.5 - p_scale without heads): the part that neither explains
-- column: z | deviation of p from 0.5 in standard errors of random vectors
-- column: z_scale | the same of p_scale
-- column: z_direction | the same of p_within, or of p_scale without heads
-- column: differs_by | nothing, scale, head structure or direction
-- column: outside | singular values outside the Marchenko-Pastur bulk at this end of the spectrum; NULL in the middle
-- column: outside_scale | singular values outside the support of the scale null at this end; NULL in the middle
-- column: inequality | mean(a²)/mean(a)² of the row (for v: column) variances a, mean over matrices: 1 if all are equal
-- show: model, stack, role, layer, module, head, part, side, p, differs_by, scale, direction, head_structure
with unequal as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        case when $layers then head end as head,
        avg(scale_row_inequality) as u_inequality,
        avg(scale_col_inequality) as v_inequality,
        count(*) - count(scale_upper) as without_scale
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads
    group by all
),

measured as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        case when $layers then head end as head,
        case (10 * k) // least(rows, cols) when 9 then 'small end' when 0 then 'large end' else 'middle' end as part,
        count(distinct (scan_id, tensor, vectors.head, expert)) as matrices,
        count(*) filter (where region = 'left') as below,
        count(*) filter (where region_scale = 'left') as below_scale,
        count(*) filter (where region = 'right') as above,
        count(*) filter (where region_scale = 'right') as above_scale,
        count(u_p) filter (where u_p_scale is not null) as u_vectors,
        avg(u_p) filter (where u_p_scale is not null) as u_p,
        avg(u_p_scale) filter (where u_p is not null) as u_p_scale,
        avg(coalesce(u_p_within, u_p_scale)) filter (where u_p is not null and u_p_scale is not null) as u_p_left,
        count(u_p_within) as u_in_heads,
        count(v_p) filter (where v_p_scale is not null) as v_vectors,
        avg(v_p) filter (where v_p_scale is not null) as v_p,
        avg(v_p_scale) filter (where v_p is not null) as v_p_scale,
        avg(coalesce(v_p_within, v_p_scale)) filter (where v_p is not null and v_p_scale is not null) as v_p_left,
        count(v_p_within) as v_in_heads
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where
        coalesce(u_p_scale, v_p_scale) is not null
        and ($role is null or role = $role)
        and (vectors.head is not null) = $heads
    group by all
),

-- Values outside the bulk are those of the whole spectrum, not of a tenth.
counted as (
    select
        * exclude (below, below_scale, above, above_scale),
        case part when 'small end' then sum(below) over whole when 'large end' then sum(above) over whole end as outside,
        case part when 'small end' then sum(below_scale) over whole when 'large end' then sum(above_scale) over whole end
            as outside_scale
    from measured
    window whole as (partition by model, stack, layer, role, module, head)
),

sides as (
    select
        counted.* exclude (u_vectors, v_vectors, u_p, v_p, u_p_scale, v_p_scale, u_p_left, v_p_left, u_in_heads, v_in_heads),
        side,
        case side when 'u' then u_vectors else v_vectors end as vectors,
        case side when 'u' then u_p else v_p end as p,
        case side when 'u' then u_p_scale else v_p_scale end as p_scale,
        case side when 'u' then u_p_left else v_p_left end as p_left,
        case side when 'u' then u_in_heads else v_in_heads end > 0 as in_heads,
        case side when 'u' then u_inequality else v_inequality end as inequality,
        without_scale
    from counted
    join unequal
        on
            counted.model = unequal.model
            and counted.role = unequal.role
            and counted.stack is not distinct from unequal.stack
            and counted.layer is not distinct from unequal.layer
            and counted.module is not distinct from unequal.module
            and counted.head is not distinct from unequal.head
    cross join (values ('v'), ('u')) as both_sides (side)
),

compared as (
    select
        *,
        (p - 0.5) * sqrt(12 * vectors) as z,
        (p_scale - 0.5) * sqrt(12 * vectors) as z_scale,
        (p_left - 0.5) * sqrt(12 * vectors) as z_direction
    from sides
    where vectors > 0
)

select
    model,
    stack,
    layer,
    role,
    module,
    head,
    part,
    side,
    matrices::integer as matrices,
    without_scale::integer as without_scale,
    vectors::integer as vectors,
    p,
    p_scale,
    case when in_heads then p_left end as p_within,
    p_scale - p as scale,
    case when in_heads then p_left - p_scale end as head_structure,
    0.5 - p_left as direction,
    compared.z as z,
    z_scale,
    z_direction,
    case
        when abs(z_direction) >= $z then 'direction'
        when abs(z_scale) >= $z then 'head structure'
        when abs(compared.z) >= $z then 'scale'
        else 'nothing'
    end as differs_by,
    outside::integer as outside,
    outside_scale::integer as outside_scale,
    inequality
from compared
order by
    model,
    stack desc nulls first,
    layer nulls last,
    role_order(role),
    role,
    module nulls first,
    head nulls first,
    case part when 'small end' then 1 when 'middle' then 2 else 3 end,
    side desc;
