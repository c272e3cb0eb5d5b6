#!/bin/bash
# A repository that is missing or damaged: the first clone, the repair, and both after a kill.
#
# Both build a complete repository beside .git and rename it into place, so that a partial one is never used:
#     .git:gitops-building   being built        .git:gitops-ready   complete, not yet in place
#     .git:gitops-old        the damaged one, until it is in its final place .git/broken-<time>
# The lock file is the same inode in all of them, so that the lock stays valid.

has_repository() { [[ -e .git || -e .git:gitops-ready ]]; }

# Complete or discard what a killed clone or repair left. Needs: dry_run, checkout, the lock.
complete_interrupted_swap() {
    if [[ $dry_run ]]; then
        [[ -e .git ]] || finish missing "'$checkout' has no repository; a run would complete its clone or repair"
        return
    fi
    if [[ ! -e .git ]]; then mv -T .git:gitops-ready .git; fi
    if [[ -e .git:gitops-old ]]; then keep_damaged; fi
    if [[ -e .git:gitops-ready || -e .git:gitops-building ]]; then rm -rf .git:gitops-ready .git:gitops-building; fi
}

# Keep the damaged repository as .git/broken-<time>, and only the last one. Sets: REPLY (its path).
keep_damaged() {
    REPLY=.git/broken-$(timestamp)
    rm -rf .git/broken-* .git:gitops-old/broken-*
    mv -T .git:gitops-old "$REPLY"
}

# Clone into the checkout, which is an empty directory. The normal run then checks out the branch. Only the default
# branch is fetched: other branches, which anyone may push, can have names that do not exist beside each other here.
# Needs: GITOPS_CLONE_URL, created. Sets: cloned, the lock. If another run has cloned meanwhile, only the lock.
clone() {
    local format=sha1 status=0
    claim_building || return 0
    export GIT_DIR=$checkout/.git:gitops-building
    forbid_prompts
    set_origin "$GITOPS_CLONE_URL"
    config[remote.origin.url]=$GITOPS_CLONE_URL
    ask_remote "$GITOPS_CLONE_URL" || abandon_clone "$?"
    branch=$remote_default
    [[ $branch ]] || { discard_clone && finish missing "$origin has no default branch that could be cloned"; }
    if ((${#remote_tip[$branch]} == 64)); then format=sha256; fi
    {
        git init --quiet --bare --template= --object-format="$format" "$GIT_DIR" &&
            git config core.bare false && git remote add origin "$GITOPS_CLONE_URL" &&
            git symbolic-ref HEAD "refs/heads/$branch" &&
            git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$branch" &&
            remote_git fetch --quiet --no-auto-maintenance origin "+refs/heads/$branch:refs/remotes/origin/$branch"
    } || status=$?
    ((status == 0)) || abandon_clone "$status"
    mv -T .git:gitops-building .git 2>/dev/null ||
        { discard_clone && finish unreachable "'$checkout/.git' was created by another process; tried again later"; }
    branch='' cloned=cloned
}

# Create .git:gitops-building with the lock in it, or take over what a dead clone left.
# Returns false if another run has completed its clone, whose lock is then held.
claim_building() {
    local building=.git:gitops-building file
    # Its config may contain a token, so only the owner can enter. In a group-shared repository, git lets the group in.
    until { [[ -d $building ]] || mkdir -m 0700 -- "$building" 2>/dev/null; } && take_lock "$building" && [[ ! -e .git ]]; do
        if [[ -e .git ]] && take_lock .git; then return 1; fi
        [[ -d $checkout ]] || finish unreachable "another run could not clone into '$checkout'; tried again later"
        [[ -w . ]] || finish denied "'$checkout' cannot be written by $(user_name)" "$(give_to_user)"
    done
    for file in "$building"/*; do
        [[ $file == */gitops.lock ]] || rm -rf -- "$file"
    done
}

# Remove an unfinished clone, and the directories that were created for it.
discard_clone() {
    rm -rf -- "$checkout/.git:gitops-building"
    if [[ $created ]]; then
        cd -- "$GITOPS_ROOT" && rmdir -p --ignore-fail-on-non-empty -- "${checkout#"$GITOPS_ROOT"/}"
    fi
}

# abandon_clone STATUS: end a clone that failed. Does not return.
abandon_clone() {
    local more=''
    if (($1 == TIMED_OUT)); then more='; GITOPS_SYNC_TIMEOUT allows more time'; fi
    discard_clone
    end_refused "$remote_error"
    finish unreachable "$origin cannot be cloned: ${remote_error:-the repository cannot be created}$more; tried again later"
}

# repair REASON: rebuild the repository from the remote, copy everything readable from the damaged one, and start the
# run again. The work tree is not touched. The damaged repository is kept, because it may hold a person's commits.
# Needs: checkout, dry_run, repaired, the lock. Sets: GITOPS_REPAIRED for the new start. Does not return.
repair() {
    local problem="the repository of '$checkout' is damaged: $1" url broken=$checkout/.git fix
    [[ ! $repaired && -d .git && ! -L .git ]] || finish missing "$problem" "$(git_fix fsck)"
    url=$(git config --file .git/config remote.origin.url) || url=''
    set_origin "$url"
    fix=$(as_owner mv -- "$checkout" "$checkout.broken") # then a clone can take its place
    [[ $url ]] || finish missing "$problem, and its config has no origin; move it away, and make a clone" "$fix"
    [[ ! $dry_run ]] || finish missing "$problem; a run would rebuild it from $origin"
    rebuild || discard_building unreachable "$problem, and $origin cannot be fetched: $remote_error"
    carry_over "$broken" ||
        discard_building missing "$problem, and $origin does not have the commit that was here; move it away, and make a clone" "$fix"
    # If the run dies after any of these renames, complete_interrupted_swap does the others.
    if ! { mv -T .git:gitops-building .git:gitops-ready && mv -T .git .git:gitops-old &&
        mv -T .git:gitops-ready .git && keep_damaged; }; then
        finish failed "$problem, and it cannot be replaced"
    fi
    export GITOPS_REPAIRED="the repository was damaged ($1) and was rebuilt from $origin; the damaged one is kept as \
'$checkout/$REPLY' until a person removes it"
    unset GIT_DIR GIT_WORK_TREE
    exec "$BASH" "$script" "${arguments[@]}" # with descriptor 9, which is the lock
}

# Create .git:gitops-building with the damaged repository's config, and fetch all branches, or else the tracked one.
# Sets: GIT_DIR (the new repository), config, setting, remote_error. Returns git's status.
rebuild() {
    rm -rf .git:gitops-building
    export GIT_DIR=$checkout/.git:gitops-building
    unset GIT_WORK_TREE
    mkdir -m 0700 "$GIT_DIR" && git init --quiet --bare --template= "$GIT_DIR" && cp -- .git/config "$GIT_DIR/config" &&
        chmod --reference=.git "$GIT_DIR" || return
    git config core.bare false && read_settings || return
    forbid_prompts
    remote_git fetch --quiet --no-auto-maintenance origin && return
    branch=${setting[branch]}
    ask_remote && branch=${branch:-$remote_default} && [[ $branch ]] &&
        remote_git fetch --quiet --no-auto-maintenance origin "+refs/heads/$branch:refs/remotes/origin/$branch"
}

discard_building() { rm -rf "$GIT_DIR" && finish "$@"; }

# carry_over BROKEN: copy what is readable into the new repository. Files are linked, not copied. Other tools keep keys
# and state in .git, so everything is copied except what git itself rebuilds.
# Needs: GIT_DIR (the new repository). Returns 1 if HEAD's commit is not available.
carry_over() {
    local broken=$1 file
    for file in "$broken"/*; do
        case ${file##*/} in
            HEAD | config | index | refs | packed-refs | shallow | gc.pid | broken-*) ;;
            gitops.lock) ln -- "$file" "$GIT_DIR/" ;;
            *.lock) ;;
            *) cp -a --link --no-clobber -- "$file" "$GIT_DIR/" 2>/dev/null ;;
        esac
    done
    for file in "$GIT_DIR"/objects/**; do
        [[ ! -f $file || -s $file ]] || rm -f -- "$file"
    done
    rm -rf "$GIT_DIR"/objects/info/commit-graph* "$GIT_DIR"/objects/pack/multi-pack-index
    carry_over_refs "$broken" && is_complete || return 1
    cp -- "$broken/index" "$GIT_DIR/index" 2>/dev/null
    git diff-index --cached --quiet HEAD 2>/dev/null
    if (($? > 1)); then rm -f "$GIT_DIR/index" && git read-tree HEAD; fi # 1: staged work, which is kept
}

# carry_over_refs BROKEN: create the refs whose objects are readable, and HEAD.
# Returns 1 if HEAD's commit is not available.
carry_over_refs() {
    local broken=$1 id='' ref value='' head_ref=''
    local -A refs=()
    while read -r id ref; do # loose refs last, because they are newer than packed ones
        if is_commit "$id" && [[ $ref == refs/* && $ref != refs/remotes/* ]] && git cat-file -e "$id" 2>/dev/null; then
            refs[$ref]=$id
        fi
    done < <(cd "$broken" && {
        cat packed-refs && echo
        for ref in refs/**; do
            [[ ! -f $ref ]] || { read -r id <"$ref"; printf '%s %s\n' "$id" "$ref"; }
        done
    } 2>/dev/null)
    for ref in "${!refs[@]}"; do git update-ref "$ref" "${refs[$ref]}"; done
    read -r value head_ref 2>/dev/null <"$broken/HEAD"
    if is_commit "$value"; then
        git update-ref --no-deref HEAD "$value" 2>/dev/null
        return
    fi
    [[ $value == ref: && $head_ref == refs/heads/* ]] && is_branch "${head_ref#refs/heads/}" ||
        head_ref=refs/heads/$(lost_branch) || return 1
    git symbolic-ref HEAD "$head_ref" || return 1
    # The commit may be lost with the branch's ref. The reflog and the last deploy name it too.
    read -r _ value _ < <(tail -n 1 "$broken/logs/HEAD" 2>/dev/null)
    for id in "${refs[$head_ref]:-}" "${value:-}" "${refs[$state_refs/deployed]:-}"; do
        if is_commit "$id" && git cat-file -e "$id^{commit}" 2>/dev/null; then break; fi
    done
    git update-ref HEAD "$id" 2>/dev/null
}

# Print the branch that HEAD named, if HEAD cannot be read: gitops.branch, else the remote's default branch.
lost_branch() {
    git config gitops.branch && return
    branch='' && ask_remote && [[ $remote_default ]] && printf '%s\n' "$remote_default"
}

# repair_or_fail PROBLEM: git failed. Repair the repository if it is damaged, else end with `failed`.
repair_or_fail() {
    if is_broken; then repair "$1"; fi
    finish failed "git failed: $1; the repository is not damaged, and the next run tries again"
}
