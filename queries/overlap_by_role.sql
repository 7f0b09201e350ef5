-- title: Overlap of singular vectors with the covariance of the activations, rank by rank
-- about: overlap is O_k = max_j |v_k . f_j|, the largest overlap of a right singular vector with a principal direction of the
--   activations that enter its matrix; mean over the matrices of one role and shape. Random vectors lie in the band from
--   random_low to random_high (0.135 and 99.865 %). peak is the largest |entry| of v_k, the same for the standard basis.
-- chart: activation_overlap
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run instead of the newest run of each matrix
-- param: role VARCHAR = NULL | this role only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: k | rank of the singular triplet, 0 = largest singular value
-- column: matrices | number of matrices in the average
-- column: runs | number of runs (texts, numbers of tokens) in the average
-- column: singular_value | mean singular value
-- column: overlap | mean O_k
-- column: match | mean rank j of the principal direction with the largest overlap, 0 = largest eigenvalue
-- column: eigenvalue | mean eigenvalue of that direction
-- column: peak | mean largest |entry|
-- column: random_low | 0.135 % quantile of O_k for random vectors
-- column: random_middle | median of O_k for random vectors
-- column: random_high | 99.865 % quantile of O_k for random vectors
-- show: model, role, shape = rows x cols, k, singular_value, overlap, match, peak, band = random_low .. random_high
select
    model,
    role,
    rows,
    cols,
    k,
    count(*)::integer as matrices,
    count(distinct run_id)::integer as runs,
    avg(singular_value) as singular_value,
    avg(overlap) as overlap,
    avg(match) as match,
    avg(eigenvalue) as eigenvalue,
    avg(peak) as peak,
    random_overlap(cols, 0.00135) as random_low,
    random_overlap(cols, 0.5) as random_middle,
    random_overlap(cols, 0.99865) as random_high
from chosen_overlaps($model, $run, $role, $centred)
group by model, role, rows, cols, k
order by model, role_order(role), role, rows, cols, k;
