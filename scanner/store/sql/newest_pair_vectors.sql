-- Results of the selected pairs of models.
create macro chosen_pair_vectors(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pair_vectors', wanted_base, wanted_tuned, wanted_pair);

-- The newest result of every pair of matrices; `all_pair_vectors` holds the results of all comparisons.
create view pair_vectors as
select * exclude (model_pair)
from chosen_pair_vectors(null, null, null);
