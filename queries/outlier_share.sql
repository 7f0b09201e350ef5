-- title: Share of the singular values outside the Marchenko-Pastur bulk, by role
-- about: Percentage of all min(rows, cols) singular values that lie below and above the bulk, over all matrices
--   of one role and shape. Random matrices have none except a few values next to the edges. In square matrices no value
--   lies below the bulk, which begins at zero. Values that are outside the edges of the scale null, too, are not explained by
--   unequal rows and columns; these shares are NULL in scans without a scale null. Matrices for which the chosen sigma has no edges
--   (the fit of bulk failed, or a version that did not store them made the scan) do not count.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: sigma VARCHAR = NULL | edges of this estimate of sigma instead of the one of the scan: median, std, bulk, init (of the
--   config, or else 1 / sqrt(rows)) or init_rows (1 / sqrt(rows))
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: matrices | number of matrices
-- column: below_percent | singular values below the bulk, percent
-- column: above_percent | singular values above the bulk, percent
-- column: below_scale_percent | singular values below the bulk of the scale null, percent of the matrices that have one
-- column: above_scale_percent | singular values above the bulk of the scale null, percent of the matrices that have one
-- show: model, role, shape = rows x cols, matrices, below_percent, above_percent, below_scale_percent, above_scale_percent
select
    model,
    role,
    rows,
    cols,
    count(*)::integer as matrices,
    100 * sum(outliers_left) / sum(least(rows, cols)) filter (where outliers_left is not null) as below_percent,
    100 * sum(outliers_right) / sum(least(rows, cols)) filter (where outliers_right is not null) as above_percent,
    100 * sum(outliers_left_scale) / sum(least(rows, cols)) filter (where outliers_left_scale is not null) as below_scale_percent,
    100 * sum(outliers_right_scale) / sum(least(rows, cols)) filter (where outliers_right_scale is not null) as above_scale_percent
from matrices_by_sigma($sigma, $model, $revision)
where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
group by model, role, rows, cols
order by model, role_order(role), role, rows, cols;
