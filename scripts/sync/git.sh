#!/bin/bash
# Calls of git, and facts about the local repository.

declare -A tracking local_branch release # see gitops_sync.sh

# The caller's environment (a hook, an alias) must not direct git to another repository.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR \
    GIT_NAMESPACE GIT_PREFIX GIT_CONFIG GIT_CONFIG_PARAMETERS GIT_SHALLOW_FILE GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE

# Hooks and fsmonitor are disabled: core.hooksPath may name a directory of the tree (husky does that), and then a push
# would run code. protectNTFS forbids names in a tree that start like .git, such as the names of the repositories that
# clone and repair build beside it.
# The other settings may be in a user's configuration, and change what our commands do or print.
GIT=(git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c protocol.ext.allow=never -c core.protectNTFS=true
    -c submodule.recurse=false -c color.ui=false -c color.advice=false -c color.transport=false -c grep.patternType=default -c versionsort.suffix=-)

# Variables that are set for our own git commands, and removed for the operator's commands.
PRIVATE_VARIABLES=(
    GIT_DIR GIT_WORK_TREE GIT_TERMINAL_PROMPT GIT_ASKPASS SSH_ASKPASS GITOPS_RESULT GITOPS_CLONE_URL GITOPS_REPAIRED
)

# Descriptor 9 is the lock. Children do not inherit it, because a child that outlives the run would keep the lock.
git() { command "${GIT[@]}" "$@" 9<&-; }

# Replace a subshell by git, with the same options.
exec_git() { exec "${GIT[@]}" "$@" 9<&-; }

# Return true for a valid branch name, by the rules of git-check-ref-format(1), without starting git.
is_branch() {
    [[ $1 && $1 != *[[:cntrl:]\ ~^:?*\\[]* && $1 != [-/.]* && $1 != *@(..|//|@\{|/.)* && $1 != *@(/|.|.lock) ]]
}

# Return true for a full object id. Not a regular expression: bash needs half a millisecond to compile {40}|{64}.
is_object_id() { [[ $1 != *[!0-9a-f]* && ${#1} == @(40|64) ]]; }

is_commit() { is_object_id "$1" && [[ $1 == *[!0]* ]]; }

# Read HEAD, the branches and the state. Called again whenever a person had time to commit.
# Needs: branch or setting. Sets: see list_refs.
read_refs() { list_refs || repair_or_fail 'HEAD or its commit cannot be read'; }

# Needs: state_refs, branch or setting. Sets: head, head_branch, default_branch, deployed, bad, tracking, local_branch,
# release, releases, followed.
# Returns 1 if git fails or if HEAD's commit is missing.
list_refs() {
    local lines id ref mark tracked=${branch:-${setting[branch]}}
    head='' head_branch='' default_branch='' deployed='' bad='' followed='' tracking=() local_branch=() release=() releases=()
    # Of the remote's branches only two matter. There may be thousands.
    lines=$(exec_git for-each-ref --format='%(objectname) %(refname) %(HEAD)%(symref)' refs/heads \
        refs/remotes/origin/HEAD ${tracked:+"refs/remotes/origin/$tracked"} "$state_refs/deployed" "$state_refs/bad" \
        ${setting[tag]:+--sort=version:refname "$state_refs/tag" refs/gitops/tags} 2>/dev/null) || return 1
    while read -r id ref mark; do
        case $ref in
            "$state_refs/deployed") deployed=$id ;;
            "$state_refs/bad") bad=$id ;;
            "$state_refs/tag") followed=${mark#refs/gitops/tags/} ;;
            refs/gitops/tags/*) releases+=("${ref#refs/gitops/tags/}") release[${ref#refs/gitops/tags/}]=$id ;;
            refs/remotes/origin/HEAD)
                default_branch=${mark#refs/remotes/origin/}
                tracking[$default_branch]=$id
                ;;
            refs/remotes/origin/*) tracking[${ref#refs/remotes/origin/}]=$id ;;
            refs/heads/*) local_branch[${ref#refs/heads/}]=$id ;;
        esac
        if [[ $mark == '*'* ]]; then head=$id head_branch=${ref#refs/heads/}; fi
    done <<<"$lines"
    # Without a branch, HEAD is detached or its branch has no commit yet.
    [[ $head ]] || head=$(git rev-parse --verify --quiet 'HEAD^{commit}') || is_unborn
}

# Return true if HEAD is a branch that never had a commit: it has no ref and no reflog.
is_unborn() {
    local ref
    ref=$(git symbolic-ref --quiet HEAD) && [[ ! -s $common_dir/logs/$ref ]] && git ls-files &>/dev/null || return
    git rev-parse --verify --quiet "$ref" >/dev/null
    (($? == 1)) # 128: the ref exists, and cannot be read
}

# Return true if the trees of HEAD's commit are readable and their files exist. git checks contents when it reads them.
is_complete() { git rev-list --quiet --objects --no-walk --exclude-promisor-objects HEAD 2>/dev/null; }

# Return true if the repository is damaged: HEAD, the index or a ref cannot be read, an object that a ref needs is
# missing, or one that HEAD or the target needs cannot be read. `git fsck` is not asked, because it also complains about
# old commits that are malformed and usable. This reads much, so it is called only after git failed.
# Needs: target.
is_broken() {
    local tips=()
    if ! is_unborn; then tips=(HEAD); fi
    if [[ $target ]] && git cat-file -e "$target^{commit}" 2>/dev/null; then tips+=("$target"); fi
    {
        git ls-files && git rev-list --quiet --objects --all --exclude-promisor-objects "${tips[@]}" &&
            git rev-list --objects --no-walk --exclude-promisor-objects "${tips[@]}" |
            git cat-file --buffer --batch='%(objecttype) %(rest)'
    } &>/dev/null
    (($? > 0 && $? <= 128)) # above 128, git was killed, which proves nothing
}

# Forward git's error output to the log and read it.
# parse_git_errors TEXT. Sets: git_error (its last line), blocking_paths (the files that git refuses to overwrite).
parse_git_errors() {
    local line
    [[ ! $1 ]] || printf '%s\n' "$1" >&2
    git_error=${1##*$'\n'}
    blocking_paths=()
    while IFS= read -r line; do
        if [[ $line == $'\t'* ]]; then blocking_paths+=("${line#$'\t'}"); fi
    done <<<"$1"
}

# Keep the repository small. `git gc --auto` makes the same decision; this one usually saves starting it.
# Needs: common_dir.
collect_garbage() {
    local loose=("$common_dir"/objects/17/*) packs=("$common_dir"/objects/pack/*.pack)
    ((${#loose[@]} <= 26 && ${#packs[@]} <= 50)) || git gc --auto --quiet
}
