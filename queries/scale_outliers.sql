-- title: Singular values outside the bulk with and without row and column scale
-- about: Numbers of singular values below and above the bulk, once by the edges of the Marchenko-Pastur law and once by those of the
--   scale null, the law of random matrices with the row and column variances of the matrix. Values that are outside only by the
--   first are explained by unequal rows and columns. Several matrices of one row are added up. Matrices without a scale null
--   are left out, and those for which the chosen sigma has no edges. Compare like with like: sigma=std with scans of
--   `--scale total`, median or bulk with robust ones.
-- param: model VARCHAR = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: layers BOOLEAN = TRUE | one row per layer; if false, one row for all layers of a role
-- param: sigma VARCHAR = NULL | edges of this estimate of sigma instead of the one of the scan: median, std, bulk, init (of the
--   config, or else 1 / sqrt(rows)) or init_rows (1 / sqrt(rows))
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL outside blocks, and if all layers are in one row
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: matrices | number of matrices
-- column: below | singular values below the Marchenko-Pastur bulk
-- column: below_scale | singular values below the bulk of the scale null
-- column: above | singular values above the Marchenko-Pastur bulk
-- column: above_scale | singular values above the bulk of the scale null
-- column: above_explained | share of the values above the Marchenko-Pastur bulk that the scale null takes away; NULL if there are none
-- column: row_inequality | mean(a²)/mean(a)² of the row variances a, mean over matrices: 1 if all rows are equal
-- column: col_inequality | the same of the columns
with counted as (
    select
        model,
        stack,
        case when $layers then layer end as layer,
        role,
        module,
        count(*)::integer as matrices,
        sum(outliers_left)::integer as below,
        sum(outliers_left_scale)::integer as below_scale,
        sum(outliers_right)::integer as above,
        sum(outliers_right_scale)::integer as above_scale,
        avg(scale_row_inequality) as row_inequality,
        avg(scale_col_inequality) as col_inequality
    from matrices_by_sigma($sigma, $model, $revision)
    where
        outliers_right_scale is not null
        and outliers_right is not null
        and ($role is null or role = $role)
        and (head is not null) = $heads
    group by all
)

select
    model,
    stack,
    layer,
    role,
    module,
    matrices,
    below,
    below_scale,
    above,
    above_scale,
    1 - above_scale / nullif(above, 0) as above_explained,
    row_inequality,
    col_inequality
from counted
order by model, stack desc nulls first, layer nulls last, role_order(role), role, module nulls first;
