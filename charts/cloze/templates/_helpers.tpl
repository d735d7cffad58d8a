{{- define "cloze.fullname" -}}
{{- if contains "cloze" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-cloze" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "cloze.labels" -}}
app.kubernetes.io/name: cloze
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "cloze.selector" -}}
app.kubernetes.io/name: cloze
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "cloze.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "cloze.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- else -}}
{{ required "mlflow.uri must name your MLflow server when mlflow.enabled is false" .Values.mlflow.uri }}
{{- end -}}
{{- end }}

{{- /* "true" for a store that lies on the chart's volume, "" for one outside. */ -}}
{{- define "cloze.mlflowDatabaseOnVolume" -}}
{{- if hasPrefix "sqlite:" .Values.mlflow.backendStoreUri }}true{{ end }}
{{- end }}

{{- /* With the driver that the image has: SQLAlchemy 2.1 takes another one for a URI that names none. */ -}}
{{- define "cloze.mlflowDatabase" -}}
{{- .Values.mlflow.backendStoreUri | replace "postgresql://" "postgresql+psycopg2://" }}
{{- end }}

{{- define "cloze.mlflowArtifactsOnVolume" -}}
{{- if or (hasPrefix "/" .Values.mlflow.artifactsDestination) (hasPrefix "file:" .Values.mlflow.artifactsDestination) }}true{{ end }}
{{- end }}

{{- define "cloze.mlflowOnVolume" -}}
{{- if or (include "cloze.mlflowDatabaseOnVolume" .) (include "cloze.mlflowArtifactsOnVolume" .) }}true{{ end }}
{{- end }}

{{- /* What the operator is told, and the test of it. */ -}}
{{- define "cloze.operatorEnv" -}}
- { name: CLOZE_TRAIN_IMAGE, value: {{ .Values.images.train | quote }} }
- { name: CLOZE_SERVE_IMAGE, value: {{ .Values.images.serve | quote }} }
- { name: CLOZE_SERVE_GPU_IMAGE, value: {{ .Values.images.serveGpu | quote }} }
- { name: CLOZE_IMAGE_PULL_POLICY, value: {{ .Values.images.pullPolicy | quote }} }
- { name: CLOZE_IMAGE_PULL_SECRETS, value: {{ join "," .Values.images.pullSecrets | quote }} }
- { name: MLFLOW_TRACKING_URI, value: {{ include "cloze.mlflowUri" . | quote }} }
- { name: CLOZE_NAMESPACES, value: {{ join "," .Values.operator.namespaces | quote }} }
- { name: CLOZE_LOG_LEVEL, value: {{ .Values.operator.logLevel | quote }} }
- { name: CLOZE_RESYNC_SECONDS, value: {{ .Values.operator.resyncSeconds | quote }} }
{{- with .Values.serving.verifyKeys }}
- { name: CLOZE_VERIFY_KEYS, value: {{ join "\n" . | quote }} }
{{- end }}
- { name: CLOZE_PROMETHEUS_URL, value: {{ .Values.prometheus.url | quote }} }
- { name: CLOZE_PROMETHEUS_TIMEOUT_SECONDS, value: {{ .Values.prometheus.timeoutSeconds | quote }} }
{{- with .Values.prometheus.headers }}
{{- $pairs := list }}
{{- range $header, $value := . }}
{{- $pairs = append $pairs (printf "%s=%s" $header $value) }}
{{- end }}
- { name: CLOZE_PROMETHEUS_HEADERS, value: {{ join "," $pairs | quote }} }
{{- end }}
{{- if .Values.prometheus.tokenSecret.name }}
- { name: CLOZE_PROMETHEUS_TOKEN_FILE, value: /var/run/cloze/prometheus/token }
{{- end }}
- { name: CLOZE_GATEWAY_COUNTER, value: {{ .Values.gateway.counter | quote }} }
- { name: CLOZE_LEASE_NAME, value: {{ include "cloze.fullname" . }}-operator }
- { name: CLOZE_LEASE_NAMESPACE, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
- { name: CLOZE_POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
{{- end }}

{{- define "cloze.prometheusMount" -}}
{{- if .Values.prometheus.tokenSecret.name }}
- { name: prometheus-token, mountPath: /var/run/cloze/prometheus, readOnly: true }
{{- end }}
{{- end }}

{{- define "cloze.prometheusVolume" -}}
{{- with .Values.prometheus.tokenSecret }}
{{- if .name }}
- name: prometheus-token
  secret:
    secretName: {{ .name }}
    items: [{ key: {{ .key }}, path: token }]
{{- end }}
{{- end }}
{{- end }}

{{- define "cloze.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Where pods of a component may run, and before which others: the settings of this name that each component has. */ -}}
{{- define "cloze.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Apart from each other where there are several machines; a cluster of one runs all. */ -}}
{{- define "cloze.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "cloze.selector" . | nindent 8 }}
    # Only pods of the same template count: those that a rollout replaces are gone soon.
    matchLabelKeys: [pod-template-hash]
{{- end }}

{{- define "cloze.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "cloze.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- /* What the operator may do in one namespace (or in all). Each verb is used; nothing is a wildcard. */ -}}
{{- define "cloze.rules" -}}
- apiGroups: [cloze.dev]
  resources: [pretrainjobs, finetunejobs]
  # delete: `ttlSecondsAfterFinished`.
  verbs: [get, list, watch, delete]
- apiGroups: [cloze.dev]
  resources: [modeldeployments]
  # patch: the annotation of a command that has been carried out is taken away.
  verbs: [get, list, watch, patch]
- apiGroups: [cloze.dev]
  resources: [pretrainjobs/status, finetunejobs/status, modeldeployments/status]
  verbs: [patch]
- apiGroups: [cloze.dev]
  # Children block their owner's foreground deletion, which needs this where OwnerReferencesPermissionEnforcement is on.
  resources: [pretrainjobs/finalizers, finetunejobs/finalizers, modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  # delete, here and of claims: before a run starts, one that was made from an older spec is made anew.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  # delete, here and below: of revisions that are neither served nor tried any more.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [get, create, patch]
{{- end }}

{{- /* A rule that lets an address be reached. Policies see a pod's port, which may not be the Service's: a Service's
whole name (name.namespace.svc) opens its namespace, any other address opens its port. */ -}}
{{- define "cloze.egressTo" -}}
{{- $url := urlParse .url }}
{{- $host := regexReplaceAll ":[0-9]+$" $url.host "" }}
{{- $labels := splitList "." $host }}
{{- if and (ge (len $labels) 3) (eq (index $labels 2) "svc") }}
- to:
    - namespaceSelector:
        matchLabels: { kubernetes.io/metadata.name: {{ index $labels 1 }} }
{{- else }}
- ports:
    - { protocol: TCP, port: {{ regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }} }
{{- end }}
{{- end }}

{{- /* The namespaces that the operator serves. */ -}}
{{- define "cloze.servedNamespaces" -}}
{{- with .Values.operator.namespaces }}
matchExpressions:
  - { key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }} }
{{- else }}
{}
{{- end }}
{{- end }}
