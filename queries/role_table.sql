-- title: How each role differs from i.i.d., by decile of the spectrum
-- about: Two rows per role, one for the right and one for the left singular vectors. The deciles divide the singular values of
--   each matrix: d1 is the smallest tenth, d10 the largest. Each value is the mean p-value of the Kolmogorov-Smirnov test
--   of the singular vectors, over a matrix and then over matrices. Random vectors have a mean of 0.5. A low d1 means
--   that the smallest singular values differ from i.i.d.; `decompose` tells by what.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: matrices | number of matrices of this role
-- column: shapes | rows x cols of the matrices
-- column: sigma | standard deviation of an entry that determines the edges of the bulk, mean
-- column: outliers_below | singular values below the bulk, mean per matrix
-- column: outliers_above | singular values above the bulk, mean per matrix
-- column: side | v: right singular vectors (input side), u: left singular vectors (output side)
-- column: d1 | decile 1 (smallest singular values): mean p-value
-- column: d2 | decile 2: mean p-value
-- column: d3 | decile 3: mean p-value
-- column: d4 | decile 4: mean p-value
-- column: d5 | decile 5: mean p-value
-- column: d6 | decile 6: mean p-value
-- column: d7 | decile 7: mean p-value
-- column: d8 | decile 8: mean p-value
-- column: d9 | decile 9: mean p-value
-- column: d10 | decile 10 (largest): mean p-value
-- show: model, role, module, side, outliers = outliers_below | outliers_above, d1, d2, d3, d5, d8, d9, d10
with summary as (
    select
        model,
        role,
        module,
        count(*)::integer as matrices,
        string_agg(distinct rows || 'x' || cols, ', ' order by rows || 'x' || cols) as shapes,
        avg(sigma) as sigma,
        avg(outliers_left) as outliers_below,
        avg(outliers_right) as outliers_above
    from matrices
    semi join chosen_scans($model, $revision) using (scan_id)
    where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
    group by model, role, module
),

-- Both sides are aggregated together; the unpivot follows the aggregation, when there are few rows.
per_matrix as (
    unpivot (
        select
            model,
            role,
            module,
            scan_id,
            tensor,
            head,
            expert,
            10 - (10 * k) // least(rows, cols) as decile,
            avg(u_p) as u,
            avg(v_p) as v
        from vectors
        semi join chosen_scans($model, $revision) using (scan_id)
        where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
        group by all
    ) on u, v into name side value p
),

deciles as (
    select
        model,
        role,
        module,
        side,
        avg(p) filter (where decile = 1) as d1,
        avg(p) filter (where decile = 2) as d2,
        avg(p) filter (where decile = 3) as d3,
        avg(p) filter (where decile = 4) as d4,
        avg(p) filter (where decile = 5) as d5,
        avg(p) filter (where decile = 6) as d6,
        avg(p) filter (where decile = 7) as d7,
        avg(p) filter (where decile = 8) as d8,
        avg(p) filter (where decile = 9) as d9,
        avg(p) filter (where decile = 10) as d10
    from per_matrix
    group by model, role, module, side
)

select summary.*, side, columns('^d[0-9]+$')
from summary
left join deciles
    on deciles.model = summary.model
    and deciles.role = summary.role
    and deciles.module is not distinct from summary.module
order by summary.model, role_order(summary.role), summary.role, summary.module nulls first, side desc;
