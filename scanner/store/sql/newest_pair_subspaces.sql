-- Results of the selected pairs of models.
create macro chosen_pair_subspaces(wanted_base, wanted_tuned, wanted_pair) as table
from chosen_results('all_pair_subspaces', wanted_base, wanted_tuned, wanted_pair);

-- The newest result of every pair of matrices; `all_pair_subspaces` holds the results of all comparisons.
create view pair_subspaces as
select * exclude (model_pair)
from chosen_pair_subspaces(null, null, null);
