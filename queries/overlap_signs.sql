-- title: Overlap with the activations beside random signs, which keep the localization of a singular vector
-- about: A singular vector that is localized on few features overlaps with principal directions that are localized on them without
--   pointing along them. signs_median is the median of O_k if the entries of v_k have random signs and keep their sizes; p is the
--   p-value of O_k under these signs (0.5 on average if direction plays no role), bound a bound on it that does not depend on the
--   number of draws. above is the share of vectors above the band of random vectors; directed is the share that is above it and has a
--   bound below 0.001: these overlap by direction and not by localization alone.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run instead of the newest run of each matrix
-- param: role VARCHAR = NULL | this role only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: region | below, bulk (inside), above, or null (numerically zero)
-- column: vectors | number of singular vectors
-- column: overlap | mean O_k
-- column: random_middle | median of O_k for random vectors
-- column: signs_median | mean of the median of O_k for random signs
-- column: p | mean p-value under random signs
-- column: small | share of vectors with p below 0.05
-- column: above | share of vectors above the band of random vectors
-- column: directed | share of vectors that are above the band by direction
-- show: model, role, shape = rows x cols, region, vectors, overlap, signs_median, p, above, directed
select
    model,
    role,
    rows,
    cols,
    case region when 'left' then 'below' when 'right' then 'above' else region end as region,
    count(*)::integer as vectors,
    avg(overlap) as overlap,
    random_overlap(cols, 0.5) as random_middle,
    avg(signs_median) as signs_median,
    avg(signs_p) as p,
    avg((signs_p < 0.05)::integer) as small,
    avg((overlap > random_overlap(cols, 0.99865))::integer) as above,
    avg((overlap > random_overlap(cols, 0.99865) and signs_bound < 0.001)::integer) as directed
from chosen_overlaps($model, $run, $role, $centred) as found
where signs_bound is not null
group by model, role, rows, cols, found.region
order by model, role_order(role), role, rows, cols, list_position(['left', 'bulk', 'right', 'null'], found.region);
