-- title: How reliable are overlaps with the activations: two halves of the text
-- about: O_k with the covariance of every other sequence beside O_k with that of the others, from runs with --halves. correlation is
--   that of both over the singular vectors, reliability the correlation to be expected of two whole texts, 2 r / (1 + r)
--   (Spearman and Brown). difference is the mean of |difference|; above_both the share of vectors that are above the band of random
--   vectors in both halves, above_one in only one of them.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run instead of the newest run of each matrix
-- param: role VARCHAR = NULL | this role only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: vectors | number of singular vectors
-- column: tokens | number of tokens of both halves, at least
-- column: overlap | mean O_k of the whole text
-- column: difference | mean of the absolute difference between the halves
-- column: correlation | correlation of the halves
-- column: reliability | correlation to be expected of two texts of the whole length
-- column: above_both | share of vectors above the band in both halves
-- column: above_one | share of vectors above the band in one half only
-- show: model, role, shape = rows x cols, vectors, tokens, overlap, difference, correlation, reliability, above_both
with halves as (
    select
        *,
        overlap_even > random_overlap(cols, 0.99865) as first_above,
        overlap_odd > random_overlap(cols, 0.99865) as second_above
    from chosen_overlaps($model, $run, $role, $centred)
    where overlap_even is not null and region != 'null'
),

correlated as (
    select
        model,
        role,
        rows,
        cols,
        count(*)::integer as vectors,
        min(tokens) as tokens,
        avg(overlap) as overlap,
        avg(abs(overlap_even - overlap_odd)) as difference,
        corr(overlap_even, overlap_odd) as correlation,
        avg((first_above and second_above)::integer) as above_both,
        avg((first_above != second_above)::integer) as above_one
    from halves
    group by model, role, rows, cols
)

select
    model,
    role,
    rows,
    cols,
    vectors,
    tokens,
    overlap,
    difference,
    correlation,
    2 * correlation / nullif(1 + correlation, 0) as reliability,
    above_both,
    above_one
from correlated
order by model, role_order(role), role, rows, cols;
