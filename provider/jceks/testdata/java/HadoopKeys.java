import java.net.URI;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HexFormat;
import java.util.TreeMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderFactory;

/**
 * Uses a keystore through Hadoop's own JavaKeyStoreProvider, as a KMS does. Arguments: provider URI, then commands:
 * dump: for each key, and for those named as name=KEY, prints its metadata and versions
 * create=NAME:CIPHER:HEX  roll=NAME:HEX  delete=NAME: one change each; a flush follows.
 * use=URI: goes on with another keystore.
 */
public class HadoopKeys {
    public static void main(String[] a) throws Exception {
        KeyProvider p = KeyProviderFactory.get(new URI(a[0]), new Configuration());
        var names = new ArrayList<String>();
        for (int i = 1; i < a.length; i++) {
            String cmd = a[i].substring(0, (a[i] + "=").indexOf('='));
            String[] arg = a[i].substring(Math.min(a[i].length(), cmd.length() + 1)).split(":");
            switch (cmd) {
                case "use" -> {
                    p = KeyProviderFactory.get(new URI(a[i].substring(4)), new Configuration());
                    System.out.println(a[i]);
                }
                case "name" -> names.add(arg[0]);
                case "create" -> {
                    byte[] m = HexFormat.of().parseHex(arg[2]);
                    var o = new KeyProvider.Options(new Configuration()).setCipher(arg[1]).setBitLength(8 * m.length);
                    p.createKey(arg[0], m, o);
                    p.flush();
                }
                case "roll" -> {
                    p.rollNewVersion(arg[0], HexFormat.of().parseHex(arg[1]));
                    p.flush();
                }
                case "delete" -> {
                    p.deleteKey(arg[0]);
                    p.flush();
                }
                case "dump" -> {
                    var all = new ArrayList<String>(p.getKeys());
                    all.addAll(names);
                    Collections.sort(all);
                    for (String n : all) {
                        var m = p.getMetadata(n);
                        System.out.println(n + " " + m.getCipher() + " " + m.getBitLength() + " " + m.getCreated().getTime() + " "
                            + m.getVersions() + " " + m.getDescription() + " " + (m.getAttributes() == null ? "{}" : new TreeMap<>(m.getAttributes())));
                        for (var v : p.getKeyVersions(n)) {
                            System.out.println("  " + v.getVersionName() + " " + HexFormat.of().formatHex(v.getMaterial()));
                        }
                    }
                }
                default -> throw new IllegalArgumentException(a[i]);
            }
        }
    }
}
