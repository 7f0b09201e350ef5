-- title: Metrics of the spectrum, by role
-- about: Medians over the matrices of each role. alpha is the exponent of a power law fitted to the tail of the spectrum,
--   and alpha_fits the number of matrices in which it means something: the fit is not rejected, and the tail is not the
--   edge of a random bulk. Read alpha together with it; ww_alpha, the same of WeightWatcher, has no such test. Counts above
--   the bulk are medians as well, by the edges of the scan, of Tracy-Widom tests, of BEMA, of WeightWatcher (num_spikes) and
--   by the optimal threshold of Gavish and Donoho. A value is NULL if no matrix has it: the scan was made without this
--   metric (`scan --metrics`), or metrics_failure in matrices says why.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: module | submodule such as cross_attention or shared experts, if a role occurs twice in a block
-- column: matrices | number of matrices of this role
-- column: alpha | exponent of the power law, of the matrices in which it means something
-- column: alpha_fits | number of matrices in which alpha means something
-- column: alpha_hill | exponent by the Hill estimator
-- column: alpha_farms | exponent by FARMS, which does not depend on the aspect ratio
-- column: ww_alpha | WeightWatcher's alpha
-- column: ww_alpha_weighted | WeightWatcher's alpha_weighted
-- column: stable_rank | sum of the squared singular values over the largest
-- column: tw_p | p-value of the largest singular value
-- column: outliers | singular values above the bulk of the scan
-- column: tw_outliers | singular values that Tracy-Widom tests reject
-- column: bema_outliers | singular values above the edge of BEMA
-- column: ww_num_spikes | WeightWatcher's num_spikes
-- column: gd_rank | singular values above the optimal hard threshold
-- column: spacing_ratio | mean ratio of neighboring gaps in the bulk, 0.5307 for random matrices
-- show: model, role, module, matrices, alpha, alpha_fits, alpha_hill, ww_alpha, stable_rank, outliers, tw_outliers
select
    model,
    role,
    module,
    count(*)::integer as matrices,
    median(alpha) filter (where alpha_failure is null) as alpha,
    -- Without the metric, alpha_failure is NULL, too.
    case when count(alpha) + count(alpha_failure) > 0 then count(alpha) filter (where alpha_failure is null) end::integer as alpha_fits,
    median(alpha_hill) as alpha_hill,
    median(alpha_farms) as alpha_farms,
    median(ww_alpha) as ww_alpha,
    median(ww_alpha_weighted) as ww_alpha_weighted,
    median(stable_rank) as stable_rank,
    median(tw_p) as tw_p,
    median(outliers_right) as outliers,
    median(tw_outliers) as tw_outliers,
    median(bema_outliers) as bema_outliers,
    median(ww_num_spikes) as ww_num_spikes,
    median(gd_rank) as gd_rank,
    median(spacing_ratio) as spacing_ratio
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
group by model, role, module
order by model, role_order(role), role, module nulls first;
